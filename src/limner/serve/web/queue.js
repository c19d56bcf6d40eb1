/** What waits and what is being drawn, with its place, its progress and a way out. */

import { $, button, el } from "./dom.js";
import { stop } from "./job.js";
import { changes, unfinished } from "./jobs.js";
import { ago, counted, lineage, many, standing, words } from "./say.js";

/** @typedef {import("./api.js").Job} Job */

export class Queue {
  /** @param {(job: Job) => void} show  brings a job into view */
  constructor(show) {
    this.show = show;
    /** @type {Map<string, Row>} */
    this.rows = new Map();
    this.empty = el(
      "li",
      { className: "none" },
      "Nothing waits. What you ask for appears here until it is drawn.",
    );
    this.scheduled = false;
    changes.addEventListener("job", () => {
      if (this.scheduled) return;
      this.scheduled = true;
      queueMicrotask(() => {
        this.scheduled = false;
        this.draw();
      });
    });
    this.draw();
  }

  draw() {
    const open = unfinished();
    const count = $("queue-count");
    count.textContent = String(open.length);
    count.hidden = open.length === 0;
    $("to-queue").setAttribute("aria-label", open.length ? `Queue, ${counted(open.length, "job")}` : "Queue");
    for (const [id, row] of this.rows) {
      if (open.some((job) => job.id === id)) continue;
      row.element.remove();
      this.rows.delete(id);
    }
    const list = $("waiting");
    open.forEach((job, at) => {
      let row = this.rows.get(job.id);
      if (!row) this.rows.set(job.id, (row = new Row(job, this.show)));
      row.update(job);
      if (list.children[at] !== row.element) list.insertBefore(row.element, list.children[at] ?? null);
    });
    if (open.length) this.empty.remove();
    else list.replaceChildren(this.empty);
  }
}

class Row {
  /** @param {Job} job  @param {(job: Job) => void} show */
  constructor(job, show) {
    this.job = job;
    this.line = el("p", { className: "standing" });
    this.bar = el("progress", { max: 1, aria: { label: "Progress" } });
    const asked = words(job) || "A picture";
    this.cancel = button("close", `Cancel: ${asked}`, () => void stop(this.job), { bare: true });
    const said = el(
      "button",
      { type: "button", className: "link said", onclick: () => show(this.job) },
      asked,
    );
    const about = [lineage(job), counted(many(job), "picture"), job.model, ago(job.created)]
      .filter(Boolean)
      .join(" · ");
    this.element = el(
      "li",
      {},
      el("div", {}, said, el("p", { className: "hint" }, about)),
      el("div", { className: "going" }, this.line, this.bar),
      this.cancel,
    );
  }

  /** @param {Job} job */
  update(job) {
    this.job = job;
    this.line.textContent = standing(job);
    this.bar.value = job.progress;
    this.bar.hidden = job.state !== "running";
    this.cancel.disabled = job.cancel;
  }
}
