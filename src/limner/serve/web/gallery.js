/** Everything that was drawn: an endless wall, searched, filtered, gone through with the arrow keys. */

import * as api from "./api.js";
import { star } from "./actions.js";
import { $, announce, el, icon } from "./dom.js";
import { changes } from "./jobs.js";
import { single } from "./shortcuts.js";

/** @typedef {import("./api.js").Picture} Picture */

const PAGE = 60; // pictures asked for at once
const THUMB = 384; // pixels, longest side

export class Gallery {
  /** @param {import("./viewer.js").Viewer} viewer */
  constructor(viewer) {
    this.viewer = viewer;
    this.wall = $("wall");
    this.end = $("wall-end");
    /** @type {Picture[]} */
    this.pictures = [];
    /** @type {string | null} */
    this.next = null;
    /** @type {Promise<void> | null} */
    this.loading = null;
    this.stale = true; // something was drawn since it was last looked at
    /** @type {AbortController | null} */
    this.asked = null;
    this.at = 0; // which picture the Tab key finds
    this.listen();
  }

  listen() {
    let timer = 0;
    $("search").addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(() => void this.load(), 250);
    });
    $("of-model").addEventListener("change", () => void this.load());
    $("starred").addEventListener("click", () => {
      const on = $("starred").getAttribute("aria-pressed") !== "true";
      $("starred").setAttribute("aria-pressed", String(on));
      void this.load();
    });
    new IntersectionObserver(([seen]) => seen.isIntersecting && void this.older(), {
      rootMargin: "800px",
    }).observe(this.end);
    this.wall.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => this.key(event));
    changes.addEventListener("job", (/** @type {any} */ { detail }) => {
      if (
        detail.state === "done" &&
        detail.pictures.some((/** @type {Picture} */ one) => !this.pictures.some(({ id }) => id === one.id))
      )
        this.stale = true;
    });
    changes.addEventListener("picture", (/** @type {any} */ { detail }) => {
      const known = this.pictures.find(({ id }) => id === detail.id);
      if (!known) return;
      Object.assign(known, detail);
      this.name(known);
    });
    changes.addEventListener("gone", (/** @type {any} */ { detail }) => {
      this.pictures = this.pictures.filter(({ id }) => id !== detail.id);
      this.tile(detail.id)?.closest("li")?.remove();
      this.closing();
    });
  }

  /** @param {api.Model[]} models */
  offer(models) {
    $("of-model").replaceChildren(
      el("option", { value: "" }, "All models"),
      ...models.map(({ name }) => el("option", { value: name }, name)),
    );
    $("of-model").closest("label").hidden = models.length < 2;
  }

  /** It is being looked at. */
  async shown() {
    if (this.stale) await this.load();
  }

  async load() {
    this.asked?.abort();
    this.asked = new AbortController();
    this.stale = false;
    this.loading = null;
    this.next = null;
    await this.fetch(true);
  }

  async older() {
    if (this.next && !$("gallery").hidden)
      await (this.loading ??= this.fetch(false).finally(() => (this.loading = null)));
  }

  /** @param {boolean} anew */
  async fetch(anew) {
    const search = $("search").value.trim();
    const starred = $("starred").getAttribute("aria-pressed") === "true";
    const { signal } = /** @type {AbortController} */ (this.asked);
    try {
      const { items, next } = await api.listPictures(
        {
          search,
          starred,
          model: $("of-model").value,
          before: anew ? undefined : (this.next ?? undefined),
          limit: PAGE,
        },
        signal,
      );
      this.next = next;
      if (anew) {
        this.pictures = [];
        this.at = 0;
        this.wall.replaceChildren();
      }
      this.pictures.push(...items);
      this.wall.append(...items.map((picture) => this.hang(picture)));
      this.closing(anew && Boolean(search || starred));
    } catch (error) {
      if (signal.aborted) return;
      this.stale = true;
      if (!(error instanceof api.Unreachable))
        this.end.textContent = error instanceof Error ? error.message : String(error);
    }
  }

  /** What stands under the wall. @param {boolean} [say]  aloud, too */
  closing(say = false) {
    const filtered =
      $("search").value.trim() || $("starred").getAttribute("aria-pressed") === "true" || $("of-model").value;
    const none = filtered ? "No picture fits." : "Nothing was drawn yet.";
    this.end.textContent = this.pictures.length ? (this.next ? "More is coming…" : "") : none;
    if (say)
      announce(
        this.pictures.length ? `${this.pictures.length}${this.next ? " and more" : ""} pictures` : none,
      );
  }

  /** @param {Picture} picture */
  hang(picture) {
    const image = el("img", {
      src: api.pictureUrl(picture.id, THUMB),
      alt: "",
      loading: "lazy",
      decoding: "async",
    });
    const first = this.pictures[this.at]?.id === picture.id;
    const tile = el(
      "button",
      { type: "button", className: "plate", tabIndex: first ? 0 : -1, data: { id: picture.id } },
      image,
      el("span", { className: "caption said" }, picture.prompt ?? ""),
      icon("star"),
    );
    tile.addEventListener("click", () => this.open(picture.id));
    tile.addEventListener("focus", () => this.reach(picture.id));
    this.name(picture, tile);
    return el("li", {}, tile);
  }

  /** @param {Picture} picture  @param {HTMLElement | null} [tile] */
  name(picture, tile = this.tile(picture.id)) {
    tile?.setAttribute("aria-label", `${picture.prompt || "A picture"}${picture.starred ? ", starred" : ""}`);
    tile?.classList.toggle("is-starred", picture.starred);
  }

  /** @param {string} id  @returns {HTMLElement | null} */
  tile(id) {
    return this.wall.querySelector(`[data-id="${CSS.escape(id)}"]`);
  }

  /** @param {string} id */
  open(id) {
    const at = this.pictures.findIndex((picture) => picture.id === id);
    const closed = (/** @type {string} */ last) =>
      (this.tile(last) ?? this.wall.querySelector("button"))?.focus();
    if (at >= 0) this.viewer.open(this.pictures, at, { more: () => this.older(), closed });
  }

  /** The Tab key finds this one from now on. @param {string} id */
  reach(id) {
    const at = this.pictures.findIndex((picture) => picture.id === id);
    const before = this.pictures[this.at];
    if (before) this.tile(before.id)?.setAttribute("tabindex", "-1");
    this.at = Math.max(0, at);
    this.tile(id)?.setAttribute("tabindex", "0");
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    const key = single(event);
    if (key === null) return;
    const tops = [...this.wall.children].slice(0, 40).map((/** @type {any} */ one) => one.offsetTop);
    const columns = Math.max(
      1,
      tops.findIndex((top) => top !== tops[0]) === -1
        ? tops.length
        : tops.findIndex((top) => top !== tops[0]),
    );
    /** @type {Record<string, number>} */
    const steps = {
      ArrowLeft: -1,
      ArrowRight: 1,
      ArrowUp: -columns,
      ArrowDown: columns,
      Home: -this.at,
      End: this.pictures.length - 1 - this.at,
    };
    if (key in steps) {
      const to = this.at + steps[key];
      if (to >= 0 && to < this.pictures.length) this.tile(this.pictures[to].id)?.focus();
      if (to >= this.pictures.length - columns) void this.older();
    } else if (key === "s" && this.pictures[this.at]) {
      void star(this.pictures[this.at]);
    } else return;
    event.preventDefault();
  }
}
