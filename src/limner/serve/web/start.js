/** A picture brought in: dropped, pasted or picked. To start from it, or to read its settings. */

import * as api from "./api.js";
import { $, button, el, toast, topmost } from "./dom.js";
import { sized } from "./say.js";
import { go } from "./views.js";

const KINDS = ["image/png", "image/jpeg", "image/webp"];

/**
 * @typedef {{id: string, width: number, height: number, strength: number, settings?: Record<string,
 *   any>|null}} Start
 */

export class StartPicture {
  /**
   * @param {HTMLElement} box  shown while there is a picture
   * @param {() => void} changed
   * @param {(settings: Record<string, any>) => void} use  its settings are wanted in the prompt
   */
  constructor(box, changed, use) {
    this.box = box;
    this.changed = changed;
    this.use = use;
    this.can = true; // whether the model can start from a picture
    /** @type {Start | null} */
    this.picture = null;
  }

  /** Take pictures from the file button, the clipboard and the whole page. */
  listen() {
    const file = $("file");
    $("attach").addEventListener("click", () => file.click());
    file.addEventListener("change", () => {
      if (file.files[0]) void this.bring(file.files[0]);
      file.value = "";
    });
    document.addEventListener("paste", (event) => {
      const found = pictureIn(event.clipboardData);
      if (!found || topmost()) return;
      event.preventDefault();
      void this.bring(found);
    });
    let depth = 0; // a drag enters every element on its way
    const hide = () => {
      depth = 0;
      $("drop").hidden = true;
    };
    document.addEventListener("dragenter", (event) => {
      if (!event.dataTransfer?.types.includes("Files") || topmost()) return;
      depth += 1;
      $("drop").hidden = false;
    });
    document.addEventListener("dragleave", () => {
      depth -= 1;
      if (depth <= 0) hide();
    });
    document.addEventListener("dragover", (event) => {
      if (event.dataTransfer?.types.includes("Files")) event.preventDefault();
    });
    document.addEventListener("drop", (event) => {
      hide();
      if (!event.dataTransfer?.types.includes("Files")) return;
      event.preventDefault();
      const found = pictureIn(event.dataTransfer);
      if (found) void this.bring(found);
      else toast("That is no picture; PNG, JPEG and WebP can be read.", { bad: true });
    });
  }

  /** @param {File} file */
  async bring(file) {
    go("draw");
    this.box.hidden = false;
    this.box.replaceChildren(el("p", { className: "hint", role: "status" }, "Bringing the picture in…"));
    try {
      const { id, width, height, settings } = await api.upload(file, file.name || "picture.png");
      this.set({ id, width, height, settings, strength: 0.75 });
      this.changed();
    } catch (error) {
      this.draw();
      toast(error instanceof Error ? error.message : String(error), { bad: true });
    }
  }

  /** @param {Start | null} picture */
  set(picture) {
    this.picture = picture;
    this.draw();
  }

  /** @param {boolean} can */
  allow(can) {
    if (can !== this.can) {
      this.can = can;
      this.draw();
    }
  }

  draw() {
    const { picture, box } = this;
    box.hidden = !picture;
    if (!picture) return void box.replaceChildren();
    const { id, width, height, settings } = picture;
    const thumb = el("img", {
      src: api.pictureUrl(id, 160),
      alt: "The picture to start from",
      width: 72,
      height: 72,
    });
    box.replaceChildren(
      thumb,
      el(
        "div",
        { className: "start-body" },
        el(
          "p",
          {},
          el("b", {}, "Start from this picture"),
          " ",
          el("span", { className: "hint" }, sized(width, height)),
        ),
        this.can
          ? this.strength(picture)
          : el(
              "p",
              { className: "refusal" },
              "This model cannot start from a picture; take another one under Details.",
            ),
        settings &&
          button("copy", "Use its settings instead", () => this.use(settings), { className: "link" }),
      ),
      button("close", "Remove the picture", () => this.remove(), { bare: true }),
    );
  }

  /** @param {Start} picture */
  strength(picture) {
    const told = el("output", { htmlFor: "strength" }, `${Math.round(picture.strength * 100)} %`);
    const oninput = (/** @type {any} */ { target }) => {
      picture.strength = Number(target.value) / 100;
      told.textContent = `${target.value} %`;
      this.changed();
    };
    const value = Math.round(picture.strength * 100);
    const range = el("input", { type: "range", id: "strength", min: 5, max: 100, step: 5, value, oninput });
    return el(
      "div",
      { className: "range" },
      el("label", { htmlFor: "strength" }, "How much to change"),
      range,
      told,
    );
  }

  remove() {
    this.set(null);
    this.changed();
    $("prompt").focus();
  }
}

/** @param {DataTransfer | null} data  @returns {File | undefined} */
function pictureIn(data) {
  return [...(data?.files ?? [])].find((file) => KINDS.includes(file.type));
}
