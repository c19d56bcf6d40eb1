/** One job on the page: its words, its pictures as they form, what can be done with them. */

import * as api from "./api.js";
import { LARGER, VARY, able, order, ownSettings, star } from "./actions.js";
import { remarks } from "./details.js";
import { announce, button, el } from "./dom.js";
import { ended, take, unfinished } from "./jobs.js";
import { ago, counted, lineage, many, settings, standing, words } from "./say.js";

/** @typedef {import("./api.js").Job} Job */
/** @typedef {{open: (job: Job, index: number, from: HTMLElement) => void, edit: (job: Job) => void,
 *   parent: (id: string) => void}} Doings  what a card asks of the rest of the page */

const TILE = 512; // pixels, longest side of a picture in a card

export class JobCard {
  /** @param {Job} job  @param {Doings} doings */
  constructor(job, doings) {
    this.doings = doings;
    this.job = job;
    this.shown = ""; // what the card was last made for
    this.said = ""; // what was last announced
    /** @type {Tile[]} */
    this.tiles = [];
    this.status = el("p", { className: "standing" });
    this.bar = el("progress", { max: 1, value: 0, aria: { label: "Progress" } });
    this.label = el("div", { className: "label" });
    this.plates = el("ol", { className: "plates" });
    this.element = el(
      "article",
      { className: "job", id: `job-${job.id}`, tabIndex: -1 },
      this.plates,
      this.label,
    );
    this.update(job);
  }

  /** @param {Job} job */
  update(job) {
    this.job = job;
    const key = [job.state, job.cancel, job.pictures.map(({ id }) => id)].join();
    if (key !== this.shown) {
      this.shown = key;
      this.draw();
    }
    this.status.textContent = standing(job);
    this.element.classList.toggle("behind", job.state === "queued" && unfinished()[0]?.id !== job.id);
    this.bar.value = job.progress;
    this.bar.hidden = job.state === "queued";
    for (const tile of this.tiles) tile.form(job.progress);
    this.tell();
  }

  draw() {
    const { job } = this;
    const { request } = job;
    this.element.dataset.state = job.state;
    const count = ended(job) ? job.pictures.length : many(job);
    this.element.dataset.count = String(count);
    if (this.tiles.length !== count) {
      this.tiles = Array.from({ length: count }, () => new Tile(request.size));
      this.plates.replaceChildren(...this.tiles.map(({ element }) => element));
    }
    this.plates.hidden = count === 0;
    job.pictures.forEach((picture, at) => this.tiles[at]?.finish(job, picture, this.doings));
    const id = `said-${job.id}`;
    this.element.setAttribute("aria-labelledby", id);
    const said = words(job) || "A picture";
    const when = el("time", { dateTime: new Date(job.created * 1000).toISOString() }, ago(job.created));
    const line = el("p", { className: "hint" }, settings(job, ownSettings(job.model)), " · ", when);
    const parts = [
      this.lineage(),
      el("h2", { className: "said", id }, said),
      line,
      this.going(),
      this.failed(),
      remarks(job.notices, job.warnings),
    ];
    this.label.replaceChildren(el("div", { className: "about" }, ...parts), this.deeds());
  }

  /** A quiet line about where the job came from; pressed, it shows that one. */
  lineage() {
    const { job } = this;
    const line = lineage(job);
    if (!line) return null;
    if (!job.parent) return el("p", { className: "lineage" }, line);
    const parent = job.parent;
    const show = () => this.doings.parent(parent);
    return el(
      "p",
      { className: "lineage" },
      el("button", { type: "button", className: "link", onclick: show }, line),
    );
  }

  going() {
    if (this.job.state === "cancelled") return this.status;
    return ended(this.job) ? null : el("div", { className: "going" }, this.status, this.bar);
  }

  failed() {
    const { failure } = this.job;
    return (
      this.job.state === "failed" &&
      el("p", { className: "refusal", role: "alert" }, failure?.message ?? "It could not be drawn.")
    );
  }

  /** What can be done with the job as a whole. */
  deeds() {
    const { job, doings } = this;
    if (!ended(job)) {
      const cancel = button("close", job.cancel ? "Stopping" : "Cancel", () => void stop(job), {
        disabled: job.cancel,
      });
      return el("div", { className: "deeds" }, cancel);
    }
    const again = job.state === "done" && job.action !== "upscale";
    return el(
      "div",
      { className: "deeds" },
      again && button("again", "Again", () => void order({ job: job.id }, { action: "reroll" })),
      button("draw", "Edit", () => doings.edit(job)),
    );
  }

  /** @param {number} at  @param {Blob} blob */
  preview(at, blob) {
    this.tiles[at]?.preview(blob);
  }

  /** @param {string} id  @param {{starred?: boolean}} news */
  marked(id, { starred }) {
    if (starred === undefined) return;
    for (const tile of this.tiles) if (tile.id === id) tile.starred(starred);
  }

  /** Say what changed to who does not see it: the state, and every quarter. */
  tell() {
    const { job } = this;
    const quarter = job.state === "running" ? Math.floor(job.progress * 4) : 0;
    const now = `${job.state} ${quarter}`;
    const before = this.said;
    this.said = now;
    if (!before || before === now) return;
    const what = words(job);
    if (job.state === "done") announce(`${counted(job.pictures.length, "picture")} ready: ${what}`);
    else if (job.state === "running" && quarter) announce(`${quarter * 25} %: ${what}`);
    else if (job.state === "running") announce(`Being drawn: ${what}`);
    else if (job.state !== "failed") announce(`${standing(job)}: ${what}`); // that is an alert
  }
}

/** @param {Job} job */
export async function stop(job) {
  try {
    take(await api.cancelJob(job.id));
  } catch (error) {
    announce(error instanceof Error ? error.message : String(error));
  }
}

/** One picture of a job, from nothing through previews to the picture itself. */
class Tile {
  /** @param {[number, number] | null | undefined} size  height and width */
  constructor(size) {
    this.id = "";
    /** @type {HTMLButtonElement | null} */
    this.star = null;
    this.image = el("img", { alt: "", className: "forming", hidden: true, decoding: "async" });
    this.plate = el("div", { className: "plate" }, this.image);
    if (size) this.plate.style.aspectRatio = `${size[1]} / ${size[0]}`;
    this.row = el("div", { className: "row" });
    this.element = el("li", {}, this.plate, this.row);
  }

  /** @param {number} progress  0 to 1: the picture comes into focus */
  form(progress) {
    if (!this.id) this.plate.style.setProperty("--veil", `${(6 * (1 - progress)).toFixed(1)}px`);
  }

  /** @param {Blob} blob */
  preview(blob) {
    if (this.id) return;
    const url = URL.createObjectURL(blob);
    const free = () => URL.revokeObjectURL(url);
    const next = new Image();
    next.src = url;
    next.decode().then(() => {
      if (this.id) return free();
      this.image.addEventListener("load", free, { once: true });
      this.image.addEventListener("error", free, { once: true });
      this.image.src = url;
      this.image.hidden = false;
    }, free);
  }

  /** @param {Job} job  @param {api.Picture} picture  @param {Doings} doings */
  finish(job, picture, doings) {
    if (this.id === picture.id) return this.starred(picture.starred);
    this.id = picture.id;
    const { image } = this;
    const at = job.pictures.indexOf(picture);
    const named = `Picture ${at + 1} of ${job.pictures.length}`;
    image.src = api.pictureUrl(picture.id, TILE);
    image.hidden = false;
    image.classList.remove("forming");
    const open = el(
      "button",
      { type: "button", className: "plate", aria: { label: `${named}, open` } },
      image,
    );
    open.addEventListener("click", () => doings.open(job, at, open));
    open.style.aspectRatio = `${picture.width} / ${picture.height}`;
    this.plate.replaceWith(open);
    this.plate = open;
    this.star = button("star", "Star", () => void star(current()), { bare: true, aria: { pressed: false } });
    const current = () => job.pictures.find(({ id }) => id === picture.id) ?? picture;
    const from = { job: job.id, index: picture.index };
    const acts = [...VARY, LARGER[0]].map(({ id, words: does, drawing, body, needs }) =>
      button(drawing, does, () => void order(from, body), {
        bare: true,
        data: { act: id },
        disabled: !able(job.model, needs),
      }),
    );
    this.row.replaceChildren(
      this.star,
      ...acts,
      button("more", "More", () => doings.open(job, at, open), { bare: true }),
    );
    this.row.setAttribute("role", "group");
    this.row.setAttribute("aria-label", named);
    this.starred(picture.starred);
  }

  /** @param {boolean} on */
  starred(on) {
    this.star?.setAttribute("aria-pressed", String(on));
  }
}
