/** Marking what is to be drawn anew: with a brush, or with rectangles that need no pointer. */

import * as api from "./api.js";
import { $, announce, button, el } from "./dom.js";

/** @typedef {{x: number, y: number}} Point  in pixels of the picture */
/**
 * @typedef {{kind: "brush" | "erase", size: number, points: Point[]} | {kind: "rectangle", from: Point, to:
 *   Point}} Mark
 */

const PAINT = "#12b49b"; // on the canvas alone; half seen through
const FINE = 768; // pixels: a small picture is painted on a canvas of at least this side

/**
 * Open the editor.
 * @param {api.Picture} picture
 * @param {(made: {mask: Blob, prompt: string, strength: number}) => Promise<void>} done
 *   `mask` is white where to draw; what `done` throws is shown and the editor stays open
 * @returns {Promise<boolean>} whether it was done
 */
export function edit(picture, done) {
  return new Editor(picture, done).open();
}

class Editor {
  /**
   * @param {api.Picture} picture
   * @param {(made: {mask: Blob, prompt: string, strength: number}) => Promise<void>} done
   */
  constructor(picture, done) {
    this.picture = picture;
    this.done = done;
    this.dialog = /** @type {HTMLDialogElement} */ ($("editor"));
    this.scale = Math.max(1, Math.ceil(FINE / Math.max(picture.width, picture.height)));
    /** @type {Mark[]} */
    this.marks = [];
    /** @type {"brush" | "erase" | "rectangle"} */
    this.tool = "brush";
    this.finished = false;
    this.canvas = /** @type {HTMLCanvasElement} */ (
      el("canvas", { width: picture.width * this.scale, height: picture.height * this.scale, role: "img" })
    );
    this.paper = /** @type {CanvasRenderingContext2D} */ (this.canvas.getContext("2d"));
    this.build();
  }

  /** @returns {Promise<boolean>} */
  open() {
    this.dialog.showModal();
    $("editor-title").focus(); // not a field: on a phone that would open the keyboard over the picture
    return new Promise((resolve) => {
      this.dialog.onclose = () => {
        this.dialog.replaceChildren();
        resolve(this.finished);
      };
    });
  }

  build() {
    const { width, height, id, prompt } = this.picture;
    const side = Math.max(width, height);
    this.size = el("input", { type: "range", id: "brush-size", min: 2, max: 50, value: 16 });
    this.strength = el("input", {
      type: "range",
      id: "region-strength",
      min: 10,
      max: 100,
      step: 5,
      value: 100,
    });
    this.prompt = el("textarea", { id: "region-prompt", rows: 2, maxLength: 10_000, value: prompt ?? "" });
    this.undo = button("undo", "Undo", () => this.back(), { disabled: true });
    this.clear = button("bin", "Clear", () => this.wipe(), { disabled: true });
    this.error = el("p", { className: "refusal", role: "alert", hidden: true });
    this.submit = el("button", { type: "submit", className: "primary", disabled: true }, "Draw the region");
    const tools = [
      ["brush", "Brush"],
      ["erase", "Eraser"],
      ["rectangle", "Rectangle"],
    ].map(([value, words]) => {
      const onchange = () => (this.tool = /** @type {any} */ (value));
      return el(
        "label",
        { className: "tool" },
        el("input", { type: "radio", name: "tool", value, checked: value === "brush", onchange }),
        el("span", {}, words),
      );
    });
    const range = (/** @type {string} */ words, /** @type {any} */ input) =>
      el("div", { className: "field" }, el("label", { htmlFor: input.id }, words), input);
    const panel = el(
      "form",
      { className: "label", onsubmit: (/** @type {Event} */ event) => void this.send(event) },
      el("h2", { id: "editor-title", tabIndex: -1 }, "Edit a region"),
      el(
        "p",
        { className: "hint" },
        "Paint over what is to be drawn anew; all else stays as it is, pixel for pixel.",
      ),
      el("fieldset", { className: "toolset" }, el("legend", {}, "Tool"), ...tools),
      range("Size of the brush", this.size),
      el("div", { className: "deeds" }, this.undo, this.clear),
      this.numbers(),
      el(
        "div",
        { className: "field" },
        el("label", { htmlFor: "region-prompt" }, "What belongs there"),
        this.prompt,
      ),
      range("How much to change", this.strength),
      this.error,
      el(
        "div",
        { className: "ends" },
        el("button", { type: "button", className: "quiet", "data-close": "" }, "Cancel"),
        this.submit,
      ),
    );
    const image = el("img", { src: api.pictureUrl(id), alt: prompt ?? "", draggable: false });
    const easel = el("div", { className: "easel" }, image, this.canvas);
    easel.style.setProperty("--wide", String(width / side));
    easel.style.setProperty("--ratio", `${width} / ${height}`);
    this.dialog.replaceChildren(
      el("div", { className: "stage" }, easel),
      panel,
      el("div", { className: "hidden", role: "status" }),
    );
    this.dialog.onkeydown = (event) => {
      const undo = (event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z";
      if (!undo || event.target === this.prompt) return;
      event.preventDefault();
      this.back();
    };
    this.paintable();
    this.redraw();
  }

  /** A rectangle by numbers, for the keyboard. */
  numbers() {
    const field = (/** @type {string} */ name, /** @type {string} */ words, /** @type {number} */ value) =>
      el(
        "div",
        { className: "field" },
        el("label", { htmlFor: `rect-${name}` }, words),
        el("input", { type: "number", id: `rect-${name}`, min: 0, max: 100, value }),
      );
    const add = () => {
      const [left, top, wide, high] = ["left", "top", "width", "height"].map(
        (name) => Number($(`rect-${name}`).value) / 100,
      );
      const { width, height } = this.picture;
      const from = { x: left * width, y: top * height };
      const to = { x: Math.min(1, left + wide) * width, y: Math.min(1, top + high) * height };
      if (to.x - from.x >= 1 && to.y - from.y >= 1) this.add({ kind: "rectangle", from, to });
    };
    return el(
      "details",
      { className: "numbers" },
      el("summary", {}, "A rectangle by numbers"),
      el("p", { className: "hint" }, "In percent of the picture."),
      el(
        "div",
        { className: "fields" },
        field("left", "From the left", 25),
        field("top", "From the top", 25),
        field("width", "Width", 50),
        field("height", "Height", 50),
      ),
      button("region", "Add the rectangle", add),
    );
  }

  paintable() {
    const { canvas } = this;
    /** @type {Mark | null} */
    let mark = null;
    const at = (/** @type {PointerEvent} */ event) => {
      const box = canvas.getBoundingClientRect();
      return {
        x: ((event.clientX - box.left) / box.width) * this.picture.width,
        y: ((event.clientY - box.top) / box.height) * this.picture.height,
      };
    };
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || mark) return;
      canvas.setPointerCapture(event.pointerId);
      const point = at(event);
      const size = (Number(this.size.value) / 100) * Math.max(this.picture.width, this.picture.height);
      mark =
        this.tool === "rectangle"
          ? { kind: "rectangle", from: point, to: point }
          : { kind: this.tool, size, points: [point] };
      this.marks.push(mark);
      this.redraw();
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!mark) return;
      if (mark.kind === "rectangle") mark.to = at(event);
      else for (const one of event.getCoalescedEvents?.() ?? [event]) mark.points.push(at(one));
      this.redraw();
    });
    const end = () => {
      if (
        mark?.kind === "rectangle" &&
        (Math.abs(mark.to.x - mark.from.x) < 1 || Math.abs(mark.to.y - mark.from.y) < 1)
      )
        this.marks.pop();
      mark = null;
      this.redraw();
    };
    canvas.addEventListener("pointerup", end);
    canvas.addEventListener("pointercancel", end);
  }

  /** @param {Mark} mark */
  add(mark) {
    this.marks.push(mark);
    this.redraw();
    announce("Rectangle added.");
  }

  back() {
    if (!this.marks.pop()) return;
    this.redraw();
    announce("Undone.");
  }

  wipe() {
    this.marks = [];
    this.redraw();
    announce("Cleared.");
  }

  redraw() {
    const { paper, canvas, marks } = this;
    paint(paper, marks, this.scale);
    const none = marks.length === 0;
    for (const one of [this.undo, this.clear, this.submit]) if (one) one.disabled = none;
    canvas.setAttribute(
      "aria-label",
      none ? "Nothing is marked yet" : `Marked: ${Math.round(this.share() * 100)} % of the picture`,
    );
  }

  /** How much of the picture is marked, 0 to 1. */
  share() {
    const { data } = this.masked().getImageData(0, 0, this.picture.width, this.picture.height);
    let white = 0;
    for (let at = 0; at < data.length; at += 4) white += data[at] > 127 ? 1 : 0;
    return white / (data.length / 4);
  }

  /** White where to draw, black elsewhere, at the picture's size. */
  masked() {
    const { width, height } = this.picture;
    const sheet = /** @type {HTMLCanvasElement} */ (el("canvas", { width, height }));
    const paper = /** @type {CanvasRenderingContext2D} */ (
      sheet.getContext("2d", { willReadFrequently: true })
    );
    paint(paper, this.marks, 1);
    const found = paper.getImageData(0, 0, width, height);
    for (let at = 0; at < found.data.length; at += 4) {
      found.data.fill(found.data[at + 3] > 127 ? 255 : 0, at, at + 3);
      found.data[at + 3] = 255;
    }
    paper.putImageData(found, 0, 0);
    return paper;
  }

  /** @param {Event} event */
  async send(event) {
    event.preventDefault();
    if (this.share() === 0) return this.say("Nothing is marked: paint over what is to be drawn anew.");
    this.submit.disabled = true;
    try {
      const mask = await new Promise((resolve) => this.masked().canvas.toBlob(resolve, "image/png"));
      await this.done({
        mask,
        prompt: this.prompt.value.trim(),
        strength: Number(this.strength.value) / 100,
      });
      this.finished = true;
      this.dialog.close();
    } catch (error) {
      this.say(error instanceof Error ? error.message : String(error));
    } finally {
      this.submit.disabled = false;
    }
  }

  /** @param {string} words */
  say(words) {
    this.error.textContent = words;
    this.error.hidden = false;
  }
}

/**
 * @param {CanvasRenderingContext2D} paper
 * @param {Mark[]} marks
 * @param {number} scale  of the paper to the picture
 */
function paint(paper, marks, scale) {
  paper.setTransform(1, 0, 0, 1, 0, 0);
  paper.clearRect(0, 0, paper.canvas.width, paper.canvas.height);
  paper.setTransform(scale, 0, 0, scale, 0, 0);
  paper.lineCap = paper.lineJoin = "round";
  paper.fillStyle = paper.strokeStyle = PAINT;
  for (const mark of marks) {
    paper.globalCompositeOperation = mark.kind === "erase" ? "destination-out" : "source-over";
    if (mark.kind === "rectangle") {
      const { from, to } = mark;
      paper.fillRect(
        Math.min(from.x, to.x),
        Math.min(from.y, to.y),
        Math.abs(to.x - from.x),
        Math.abs(to.y - from.y),
      );
      continue;
    }
    paper.lineWidth = mark.size;
    const [{ x: startX, y: startY }] = mark.points;
    paper.beginPath(); // a tap leaves a dot: a line of no length would leave nothing
    paper.arc(startX, startY, mark.size / 2, 0, 2 * Math.PI);
    paper.fill();
    paper.beginPath();
    paper.moveTo(startX, startY);
    for (const { x, y } of mark.points) paper.lineTo(x, y);
    paper.stroke();
  }
}
