/** The jobs under the prompt, latest first; older ones come as one scrolls. */

import * as api from "./api.js";
import { $, calm, el } from "./dom.js";
import { JobCard } from "./job.js";
import { changes, jobs, take } from "./jobs.js";
import { go } from "./views.js";

const PAGE = 12; // jobs asked for at once
const IDEAS = [
  "a fox on a green background",
  "two red apples to the left of a cat on a blue background",
  "a rocket in space",
];

export class Feed {
  /** @param {import("./job.js").Doings} doings  @param {(prompt: string) => void} write */
  constructor(doings, write) {
    this.doings = doings;
    this.box = $("feed");
    /** @type {Map<string, JobCard>} */
    this.cards = new Map();
    /** @type {string | null} */
    this.next = null;
    this.loading = false;
    this.loaded = false;
    changes.addEventListener("job", (/** @type {any} */ { detail }) => this.put(detail));
    changes.addEventListener("preview", (/** @type {any} */ { detail: { id, index, blob } }) =>
      this.cards.get(id)?.preview(index, blob),
    );
    changes.addEventListener("picture", (/** @type {any} */ { detail }) => {
      for (const card of this.cards.values()) card.marked(detail.id, detail);
    });
    changes.addEventListener("gone", (/** @type {any} */ { detail }) => {
      const card = this.cards.get(detail.job);
      if (card) card.update(jobs.get(detail.job) ?? card.job);
    });
    $("older").addEventListener("click", () => void this.older());
    new IntersectionObserver(([seen]) => seen.isIntersecting && void this.older(), {
      rootMargin: "600px",
    }).observe($("older"));
    const ideas = IDEAS.map((idea) =>
      el("button", { type: "button", className: "idea", onclick: () => write(idea) }, idea),
    );
    $("welcome").append(el("p", {}, "Nothing was drawn yet. You could begin with"), ...ideas);
  }

  /** @param {api.Job} job */
  put(job) {
    const known = this.cards.get(job.id);
    if (known) return known.update(job);
    const card = new JobCard(job, this.doings);
    this.cards.set(job.id, card);
    const later = [...this.box.children].find(
      (/** @type {any} */ one) => Number(one.dataset.created) < job.created,
    );
    card.element.dataset.created = String(job.created);
    this.box.insertBefore(card.element, later ?? null);
    this.welcome();
  }

  /** The first page, again if need be: what was missed while nobody answered. */
  async load() {
    const { items, next } = await api.listJobs({ limit: PAGE });
    for (const job of items) take(job);
    if (!this.loaded) this.next = next;
    this.loaded = true;
    $("older").hidden = !this.next;
    this.welcome();
  }

  async older() {
    if (this.loading || !this.next) return;
    this.loading = true;
    try {
      const { items, next } = await api.listJobs({ limit: PAGE, before: this.next });
      for (const job of items) take(job);
      this.next = next;
      $("older").hidden = !next;
    } catch (error) {
      if (!(error instanceof api.Unreachable)) throw error;
    } finally {
      this.loading = false;
    }
  }

  welcome() {
    $("welcome").hidden = !this.loaded || this.cards.size > 0;
  }

  /** Bring a job into view and put the focus on it. @param {string} id  @returns {Promise<void>} */
  async reveal(id) {
    if (!jobs.has(id)) take(await api.getJob(id));
    go("draw");
    requestAnimationFrame(() => {
      const card = this.cards.get(id);
      card?.element.scrollIntoView({ behavior: calm() ? "auto" : "smooth", block: "center" });
      card?.element.focus({ preventScroll: true });
    });
  }
}
