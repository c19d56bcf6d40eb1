/** One picture, large, with everything that can be done with it. */

import * as api from "./api.js";
import { LARGER, PAN, VARY, able, copySettings, perform, remove, star } from "./actions.js";
import { ask } from "./dialogs.js";
import { $, announce, button, el, topmost } from "./dom.js";
import { edit } from "./editor.js";
import { changes, jobs } from "./jobs.js";
import { single } from "./shortcuts.js";
import { ago, sized } from "./say.js";

/** @typedef {import("./api.js").Picture} Picture */
/** @typedef {import("./actions.js").Action} Action */

const SHOWN = /** @type {const} */ ([
  ["model", "Model"],
  ["seed", "Seed"],
  ["negative_prompt", "Kept out"],
  ["style", "Style"],
  ["steps", "Steps"],
  ["guidance", "Guidance"],
  ["sampler", "Sampler"],
  ["strength", "Strength"],
]);

export class Viewer {
  /** @param {import("./prompt.js").Composer} composer */
  constructor(composer) {
    this.composer = composer;
    this.dialog = /** @type {HTMLDialogElement} */ ($("viewer"));
    /** @type {Picture[]} */
    this.pictures = [];
    this.at = 0;
    /** @type {(() => Promise<unknown>) | undefined} */
    this.more = undefined;
    /** @type {((id: string) => void) | undefined} */
    this.closed = undefined;
    this.image = el("img", { id: "viewed", alt: "" });
    this.back = button("left", "Previous picture", () => this.go(-1), { className: "icon turn back" });
    this.on = button("right", "Next picture", () => this.go(1), { className: "icon turn on" });
    for (const turn of [this.back, this.on]) turn.querySelector("span")?.classList.add("hidden");
    $("stage").append(this.image, this.back, this.on);
    document.addEventListener("keydown", (event) => {
      if (topmost() === this.dialog) this.key(event); // also when the button with the focus has just gone
    });
    this.dialog.addEventListener("close", () => {
      this.image.removeAttribute("src");
      this.closed?.(this.picture?.id ?? "");
    });
    changes.addEventListener("picture", (/** @type {any} */ { detail }) => {
      for (const one of this.pictures) if (one.id === detail.id) Object.assign(one, detail);
      if (this.dialog.open && this.picture?.id === detail.id) this.starred();
    });
  }

  get picture() {
    return this.pictures[this.at];
  }

  /**
   * @param {Picture[]} pictures  to go through
   * @param {number} at  the first to show
   * @param {{more?: () => Promise<unknown>, closed?: (id: string) => void}} [around]
   *   `more` brings further pictures into the same array; `closed` hears which picture was the last
   */
  open(pictures, at, { more, closed } = {}) {
    this.pictures = pictures;
    this.more = more;
    this.closed = closed;
    this.show(at);
    this.dialog.showModal();
    $("viewer-prompt").focus();
  }

  /** @param {number} by */
  go(by) {
    const to = this.at + by;
    if (to >= 0 && to < this.pictures.length) this.show(to);
  }

  /** @param {number} at */
  show(at) {
    this.at = at;
    const { picture } = this;
    const said = picture.prompt || "A picture";
    this.image.src = api.pictureUrl(picture.id);
    this.image.alt = said;
    this.image.style.setProperty("--most", `${Math.max(480, picture.height * 3)}px`); // beyond is blur
    this.image.style.aspectRatio = `${picture.width} / ${picture.height}`;
    this.back.disabled = at === 0;
    this.on.disabled = at === this.pictures.length - 1;
    $("viewer-prompt").textContent = said;
    $("viewer-label").scrollTop = 0;
    this.draw();
    announce(`Picture ${at + 1} of ${this.pictures.length}`);
    if (this.more && at >= this.pictures.length - 4)
      void this.more().then(() => (this.on.disabled = this.at === this.pictures.length - 1));
    void this.settings(picture);
  }

  draw() {
    const { picture } = this;
    this.error = el("p", { className: "refusal", role: "alert", hidden: true });
    this.facts = el("dl", { className: "facts" });
    this.star = button("star", "Star", () => void star(picture), { aria: { pressed: false } });
    const made = picture.job !== null;
    const heading = (/** @type {string} */ words, /** @type {any[]} */ ...deeds) =>
      el("section", {}, el("h3", {}, words), el("div", { className: "deeds" }, ...deeds));
    $("viewer-body").replaceChildren(
      el(
        "p",
        { className: "hint" },
        [sized(picture.width, picture.height), picture.created && ago(picture.created)]
          .filter(Boolean)
          .join(" · "),
      ),
      this.error,
      ...(made
        ? [
            heading("Vary", ...VARY.map((one) => this.deed(one)), this.remixing(), this.editing()),
            heading(
              "Larger and wider",
              ...LARGER.map((one) => this.deed(one)),
              el(
                "div",
                { className: "pad", role: "group", aria: { label: "Pan" } },
                el("span", { aria: { hidden: true } }, "Pan"),
                ...PAN.map((one) => this.deed(one, true)),
              ),
            ),
          ]
        : []),
      heading(
        "This picture",
        this.star,
        el(
          "a",
          { className: "quiet", href: api.downloadUrl(picture.id), download: `limner-${picture.id}.png` },
          ...button("save", "Download", () => {}).childNodes,
        ),
        button("picture", "Start from it", () => this.leave(() => this.composer.startFrom(picture))),
        made && button("seed", "Use its seed", () => this.leave(() => this.composer.seed(picture.seed))),
        button("copy", "Copy settings", (event) => void this.copy(event)),
        button("bin", "Delete", () => void this.delete(picture)),
      ),
      this.facts,
    );
    this.starred();
  }

  starred() {
    const on = Boolean(this.picture?.starred);
    this.star?.setAttribute("aria-pressed", String(on));
    const words = this.star?.querySelector("span");
    if (words) words.textContent = on ? "Starred" : "Star";
  }

  /** @param {string[]} [needs] */
  able(needs) {
    const job = jobs.get(this.picture?.job ?? "");
    return able(job?.model ?? this.picture?.model ?? "", needs);
  }

  /** @param {Action} action  @param {boolean} [bare] */
  deed({ id, words, short, drawing, body, needs }, bare = false) {
    const can = this.able(needs);
    const made = button(drawing, bare ? words : (short ?? words), () => void this.act(body), {
      bare,
      data: { act: id },
      disabled: !can,
      aria: short ? { label: words } : {},
    });
    if (!can) made.title = `${words}: this model cannot`;
    return made;
  }

  remixing() {
    return button("remix", "Remix…", () => void this.remix(), { data: { act: "remix" } });
  }

  editing() {
    const can = this.able(["mask"]);
    return button("region", "Edit region…", () => void this.region(), {
      data: { act: "region" },
      disabled: !can,
    });
  }

  /** @param {Record<string, any>} body */
  async act(body) {
    const { picture } = this;
    if (!picture?.job) return;
    try {
      await perform({ job: picture.job, index: picture.index }, body);
      this.leave();
    } catch (error) {
      this.say(error);
    }
  }

  /** @param {unknown} error */
  say(error) {
    if (!this.error) return;
    this.error.textContent = error instanceof Error ? error.message : String(error);
    this.error.hidden = false;
  }

  /** Close, and then do something on the page beneath. @param {() => void} [then] */
  leave(then) {
    this.closed = undefined; // the focus goes elsewhere
    this.dialog.close();
    then?.();
  }

  async remix() {
    const { picture } = this;
    const area = el("textarea", {
      id: "remix-prompt",
      rows: 3,
      maxLength: 10_000,
      value: picture?.prompt ?? "",
      required: true,
    });
    const field = el("label", { className: "field" }, el("span", {}, "Prompt"), area);
    const text = "The picture stays the start; the words change.";
    const done = () =>
      perform(
        { job: picture?.job ?? "", index: picture?.index },
        { action: "remix", prompt: area.value.trim() },
      );
    if (await ask({ title: "Remix", text, yes: "Draw", field }, done)) this.leave();
  }

  async region() {
    const { picture } = this;
    if (!picture?.job) return;
    const from = { job: picture.job, index: picture.index };
    const made = await edit(picture, async ({ mask, prompt, strength }) => {
      const { id } = await api.upload(mask, "mask.png");
      await perform(from, { action: "region", mask: id, prompt, strength });
    });
    if (made) this.leave();
  }

  /** @param {Event} event */
  async copy({ currentTarget }) {
    const words = /** @type {HTMLElement} */ (currentTarget).querySelector("span");
    try {
      await copySettings(this.picture);
      if (words) words.textContent = "Copied";
      announce("Settings copied.");
    } catch (error) {
      this.say(error);
    }
  }

  /** @param {Picture} picture */
  async delete(picture) {
    const text = "The file is removed from the server, for good.";
    if (!(await ask({ title: "Delete this picture?", text, yes: "Delete" }, () => remove(picture)))) return;
    this.pictures = this.pictures.filter(({ id }) => id !== picture.id);
    if (this.pictures.length) this.show(Math.min(this.at, this.pictures.length - 1));
    else this.dialog.close();
  }

  /** @param {Picture} picture */
  async settings(picture) {
    const told = /** @type {Record<string, any>} */ (await api.pictureSettings(picture.id).catch(() => ({})));
    if (this.picture !== picture || !this.facts) return;
    const facts = SHOWN.filter(([name]) => name !== "strength" || told.image)
      .map(([name, label]) => [label, name === "seed" ? (told.seed ?? picture.seed) : told[name]])
      .filter(([, value]) => value !== undefined && value !== null && value !== "");
    this.facts.replaceChildren(
      ...facts.map(([label, value]) => el("div", {}, el("dt", {}, label), el("dd", {}, value))),
    );
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    const key = single(event);
    const { picture } = this;
    if (key === null || !picture) return;
    /** @type {Record<string, () => void>} */
    const keys = {
      ArrowLeft: () => this.go(-1),
      ArrowRight: () => this.go(1),
      s: () => void star(picture),
      ...(picture.job && {
        v: () => this.press("vary_subtle"),
        V: () => this.press("vary_strong"),
        u: () => this.press("upscale"),
        r: () => this.press("remix"),
        e: () => this.press("region"),
      }),
    };
    if (!keys[key]) return;
    event.preventDefault();
    keys[key]();
  }

  /** @param {string} act */
  press(act) {
    /** @type {HTMLButtonElement | null} */ (this.dialog.querySelector(`[data-act="${act}"]`))?.click();
  }
}
