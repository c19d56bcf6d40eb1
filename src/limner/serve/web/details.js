/** The details on demand: model, count, size, seed, steps, guidance, sampler, style, what to avoid. */

import { el, icon } from "./dom.js";
import { counted, sized } from "./say.js";

/** @typedef {import("./api.js").Model} Model */
/**
 * @typedef {{model?: string, count?: number, size?: [number, number], seed?: number, steps?: number,
 *   guidance?: number,
 *   sampler?: string, style?: string, negative_prompt?: string}} Wishes  what is not wished for, the model
 *   decides
 */

export const COUNT = 4; // pictures, as the server has it where nothing is said
export const SAMPLERS = [
  "ddim",
  "ddpm",
  "euler",
  "euler_ancestral",
  "heun",
  "dpmpp_2m",
  "dpmpp_2m_sde",
  "dpmpp_sde",
  "unipc",
  "lcm",
];
const SHAPES = /** @type {const} */ ([
  ["square", 1, 1],
  ["portrait", 2, 3],
  ["tall", 9, 16],
  ["landscape", 3, 2],
  ["wide", 16, 9],
]);
const NUMBERS = /** @type {const} */ ({
  count: [1, 64, 1],
  seed: [0, 4294967295, 1],
  steps: [1, 1000, 1],
  guidance: [0, 30, 0.1],
});

/** Whether it draws squares alone. @param {Model} model */
function square(model) {
  return model.defaults.square === true || model.family === "mini";
}

/** Sizes worth offering. @param {Model} model  @returns {[string, number, number][]} name, width, height */
export function shapes(model) {
  const [height, width] = model.default_size;
  const [least, most] = model.sizes ?? [64, 2048];
  if (square(model)) {
    const others = [128, 192, 256, 384, 512, 768, 1024].filter((side) => side >= least && side <= most);
    return [width, ...others.filter((side) => side !== width)].map((side) => [
      side === width ? "its own" : side < width ? "smaller" : "larger",
      side,
      side,
    ]);
  }
  const area = width * height;
  const round = (/** @type {number} */ side) => Math.min(most, Math.max(least, Math.round(side / 64) * 64));
  return SHAPES.map(([name, w, h]) =>
    w === h
      ? ["its own", width, height]
      : [name, round(Math.sqrt((area * w) / h)), round(Math.sqrt((area * h) / w))],
  );
}

export class Details {
  /**
   * @param {HTMLElement} box  empty
   * @param {() => void} changed
   */
  constructor(box, changed) {
    this.box = box;
    this.changed = changed;
    /** @type {Wishes} */
    this.wishes = {};
    /** @type {Model[]} */
    this.models = [];
    this.custom = false; // whether the size is written by hand
  }

  /** The model that would draw now. @returns {Model | undefined} */
  get model() {
    return this.models.find(({ name }) => name === this.wishes.model) ?? this.models[0];
  }

  /** @param {Model[]} models */
  offer(models) {
    this.models = models;
    if (!models.some(({ name }) => name === this.wishes.model)) delete this.wishes.model;
    this.draw();
  }

  /** @param {Wishes} wishes */
  wish(wishes) {
    this.wishes = { ...wishes };
    this.custom = false;
    this.draw();
  }

  /** One setting; undefined or "" leaves it to the model.
   * @template {keyof Wishes} K  @param {K} name  @param {Wishes[K] | ""} value */
  set(name, value) {
    if (value === undefined || value === "") delete this.wishes[name];
    else this.wishes[name] = /** @type {Wishes[K]} */ (value);
    this.changed();
  }

  /** What is wished for, in a line. */
  summary() {
    const { model, wishes } = this;
    const [height, width] = wishes.size ?? model?.default_size ?? [];
    const said = [
      counted(wishes.count ?? COUNT, "picture"),
      width && sized(width, height ?? width),
      wishes.style,
      wishes.seed !== undefined && `seed ${wishes.seed}`,
      wishes.steps !== undefined && counted(wishes.steps, "step"),
      this.models.length > 1 && model?.name,
    ];
    return said.filter(Boolean).join(" · ");
  }

  draw() {
    const { model } = this;
    if (!model) return;
    const { defaults } = model;
    const own = (/** @type {unknown} */ value) => (value === undefined || value === null ? "" : `${value}`);
    this.box.replaceChildren(
      this.picker(model),
      el(
        "div",
        { className: "fields" },
        this.counter(),
        this.size(model),
        this.number("seed", "Seed", "at random", "The same seed and settings give the same picture"),
        model.styles.length > 0 && this.choice("style", "Style", model.styles, "any"),
        this.number("steps", "Steps", own(defaults.steps)),
        this.number("guidance", "Guidance", own(defaults.guidance), "How closely to follow the prompt"),
        this.choice(
          "sampler",
          "Sampler",
          SAMPLERS,
          defaults.sampler ? `its own (${defaults.sampler})` : "its own",
        ),
        this.negative(model),
      ),
      el(
        "p",
        { className: "foot" },
        el(
          "button",
          { type: "button", className: "link", onclick: () => this.reset() },
          "Back to the model's own settings",
        ),
      ),
    );
  }

  reset() {
    this.wish(this.wishes.model ? { model: this.wishes.model } : {});
    this.changed();
    /** @type {HTMLElement | null} */ (this.box.querySelector("input, select"))?.focus();
  }

  /** @param {Model} chosen */
  picker(chosen) {
    const cards = this.models.map((model) => {
      const [height, width] = model.default_size;
      const sides = model.sizes ? `, sides ${model.sizes[0]} to ${model.sizes[1]}` : "";
      const pick = () => {
        this.wish({ ...this.wishes, model: model.name, size: undefined, style: undefined });
        this.changed();
        /** @type {HTMLElement | null} */ (this.box.querySelector("input[name=model]:checked"))?.focus();
      };
      return el(
        "label",
        { className: "model" },
        el("input", {
          type: "radio",
          name: "model",
          value: model.name,
          checked: model === chosen,
          onchange: pick,
        }),
        el("b", {}, model.name),
        el(
          "span",
          {},
          `${model.family === "mini" ? "built in" : model.family} · best at ${sized(width, height)}${sides}`,
        ),
      );
    });
    return el("fieldset", { className: "models" }, el("legend", {}, "Model"), ...cards);
  }

  counter() {
    const input = this.input("count", String(COUNT));
    const step = (/** @type {number} */ by) => () => {
      const now = Math.min(64, Math.max(1, (this.wishes.count ?? COUNT) + by));
      input.value = String(now);
      this.set("count", now);
    };
    return el(
      "div",
      { className: "field" },
      el("label", { htmlFor: "count" }, "Pictures"),
      el(
        "div",
        { className: "stepper" },
        el("button", { type: "button", aria: { label: "One picture fewer" }, onclick: step(-1) }, "−"),
        input,
        el("button", { type: "button", aria: { label: "One picture more" }, onclick: step(1) }, "+"),
      ),
    );
  }

  /** @param {keyof typeof NUMBERS} name  @param {string} placeholder */
  input(name, placeholder) {
    const [min, max, step] = NUMBERS[name];
    const oninput = (/** @type {any} */ { target }) => {
      if (target.value === "" || target.checkValidity())
        this.set(name, target.value === "" ? "" : Number(target.value));
    };
    const value = this.wishes[name] ?? "";
    return el("input", {
      type: "number",
      id: name,
      min,
      max,
      step,
      placeholder,
      value,
      oninput,
      inputMode: step < 1 ? "decimal" : "numeric",
    });
  }

  /**
   * @param {keyof typeof NUMBERS} name
   * @param {string} label
   * @param {string} placeholder
   * @param {string} [tip]
   */
  number(name, label, placeholder, tip) {
    const input = this.input(name, placeholder);
    if (tip) input.title = tip;
    return el("div", { className: "field" }, el("label", { htmlFor: name }, label), input);
  }

  /**
   * @param {"style" | "sampler"} name
   * @param {string} label
   * @param {string[]} values
   * @param {string} none
   */
  choice(name, label, values, none) {
    const onchange = (/** @type {any} */ { target }) => this.set(name, target.value);
    const options = values.map((value) =>
      el("option", { value, selected: value === this.wishes[name] }, value),
    );
    const select = el("select", { id: name, onchange }, el("option", { value: "" }, none), ...options);
    return el("div", { className: "field" }, el("label", { htmlFor: name }, label), select);
  }

  /** @param {Model} model */
  size(model) {
    const offered = shapes(model);
    const [h, w] = this.wishes.size ?? [];
    const listed = offered.some(([, width, height]) => width === w && height === h);
    const custom = this.custom || (w !== undefined && !listed);
    const onchange = (/** @type {any} */ { target }) => {
      this.custom = target.value === "custom";
      const [width, height] = target.value.split("x").map(Number);
      this.set("size", target.value === "" ? "" : this.custom ? [...model.default_size] : [height, width]);
      this.draw();
      /** @type {HTMLElement | null} */ (this.box.querySelector(this.custom ? "#width" : "#size"))?.focus();
    };
    const options = offered.map(([name, width, height], i) => {
      const value = i ? `${width}x${height}` : "";
      return el(
        "option",
        { value, selected: !custom && width === w && height === h },
        `${sized(width, height)}, ${name}`,
      );
    });
    const other = el("option", { value: "custom", selected: custom }, "Another size…");
    const select = el("select", { id: "size", onchange }, ...options, other);
    const parts = [el("label", { htmlFor: "size" }, "Size"), select];
    if (custom) parts.push(this.sides(model, w ?? model.default_size[1], h ?? model.default_size[0]));
    return el("div", { className: "field" }, ...parts);
  }

  /** @param {Model} model  @param {number} width  @param {number} height */
  sides(model, width, height) {
    const [min, max] = model.sizes ?? [16, 8192];
    const read = () => {
      const tall = square(model) ? wide : high;
      if (wide.checkValidity() && tall.checkValidity())
        this.set("size", [Number(tall.value), Number(wide.value)]);
    };
    const side = (/** @type {string} */ id, /** @type {string} */ label, /** @type {number} */ value) =>
      el("input", {
        type: "number",
        id,
        min,
        max,
        step: 1,
        required: true,
        value,
        oninput: read,
        aria: { label },
      });
    const wide = side("width", square(model) ? "Side in pixels" : "Width in pixels", width);
    const high = side("height", "Height in pixels", height);
    if (square(model)) return el("div", { className: "sides" }, wide);
    return el("div", { className: "sides" }, wide, el("span", { aria: { hidden: true } }, "×"), high);
  }

  /** @param {Model} model */
  negative(model) {
    if (!model.can.includes("negative_prompt")) return null;
    const oninput = (/** @type {any} */ { target }) => this.set("negative_prompt", target.value);
    const area = el("textarea", {
      id: "negative",
      rows: 2,
      maxLength: 10_000,
      value: this.wishes.negative_prompt ?? "",
      oninput,
    });
    return el(
      "div",
      { className: "field wide" },
      el("label", { htmlFor: "negative" }, "What to keep out"),
      area,
    );
  }
}

/** The lines under a job's or a composer's pictures that say what the model made of the words.
 * @param {string[]} notices  @param {string[]} warnings */
export function remarks(notices, warnings) {
  if (!notices.length && !warnings.length) return null;
  const line = (/** @type {string} */ drawing) => (/** @type {string} */ words) =>
    el("li", { className: drawing }, icon(drawing), el("span", {}, words));
  return el("ul", { className: "remarks" }, ...warnings.map(line("warn")), ...notices.map(line("note")));
}
