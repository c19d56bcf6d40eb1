/**
 * The prompt box. What is written in it stays in this browser until it is changed, through reloads and
 * restarts.
 */

import * as api from "./api.js";
import { COUNT, Details } from "./details.js";
import { $, announce } from "./dom.js";
import { jobs, take } from "./jobs.js";
import { keep, kept } from "./keep.js";
import { StartPicture } from "./start.js";
import { words } from "./words.js";
import { go } from "./views.js";

/** Settings of a request that Details can show. */
const WISHES = /** @type {const} */ ([
  "model",
  "size",
  "seed",
  "steps",
  "guidance",
  "sampler",
  "style",
  "negative_prompt",
]);

export class Composer {
  constructor() {
    const draft = kept("draft", /** @type {any} */ ({}));
    this.prompt = /** @type {HTMLTextAreaElement} */ ($("prompt"));
    this.details = new Details($("details"), () => this.changed());
    this.start = new StartPicture(
      $("start"),
      () => this.changed(),
      (settings) => this.read(settings),
    );
    this.once = ""; // names the request on its way: sent again, it is the same job
    this.prompt.value = typeof draft.prompt === "string" ? draft.prompt : "";
    this.details.wishes = draft.wishes ?? {};
    this.start.set(draft.start ?? null);
    this.start.listen();
    this.listen();
    this.fit();
  }

  listen() {
    const form = $("composer");
    form.addEventListener("submit", (/** @type {Event} */ event) => {
      event.preventDefault();
      void this.submit();
    });
    this.prompt.addEventListener("input", () => this.changed());
    this.prompt.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      form.requestSubmit();
    });
    const open = words($("words"), (word) => this.insert(word));
    this.foldable("words-open", "words", open);
    this.foldable("details-open", "details", () => {});
    addEventListener("resize", () => this.fit());
  }

  /** @param {string} opener  @param {string} drawer  @param {() => void} opened */
  foldable(opener, drawer, opened) {
    $(opener).addEventListener("click", () => {
      const show = $(drawer).hidden;
      for (const [button, part] of [
        ["words-open", "words"],
        ["details-open", "details"],
      ]) {
        $(part).hidden = part !== drawer || !show;
        $(button).setAttribute("aria-expanded", String(!$(part).hidden));
      }
      if (show) opened();
    });
  }

  /** @param {api.Model[]} models */
  offer(models) {
    this.details.offer(models);
    this.changed();
  }

  /** Something was written or set. */
  changed() {
    const { details, start, prompt } = this;
    this.once = "";
    this.fit();
    this.refuse("");
    $("summary").textContent = details.summary();
    $("words-open").hidden = details.model?.family !== "mini";
    start.allow(details.model?.can.includes("image") ?? true);
    keep("draft", { prompt: prompt.value, wishes: details.wishes, start: start.picture });
  }

  /** As high as the text. */
  fit() {
    if (CSS.supports("field-sizing", "content")) return;
    this.prompt.style.height = "auto";
    this.prompt.style.height = `${this.prompt.scrollHeight}px`;
  }

  /** @param {string} why  "": nothing is wrong */
  refuse(why) {
    const line = $("refusal");
    line.hidden = !why;
    if (line.textContent !== why) line.textContent = why;
    this.prompt.setAttribute("aria-invalid", String(Boolean(why)));
  }

  /** The request as POST /jobs takes it. */
  request() {
    const { start, details, prompt } = this;
    const image = start.picture && { image: { picture: start.picture.id }, strength: start.picture.strength };
    return { prompt: prompt.value.trim(), ...details.wishes, ...image };
  }

  async submit() {
    if (!this.prompt.value.trim()) {
      this.refuse("Write what you want to see first.");
      return void this.prompt.focus();
    }
    if (!$("composer").reportValidity()) return;
    this.once ||= api.unique();
    const button = $("submit");
    button.disabled = true;
    try {
      const job = await api.submit(this.request(), this.once);
      this.once = "";
      this.refuse("");
      take(jobs.get(job.id) ?? job);
      announce("Accepted.");
    } catch (error) {
      const after = error instanceof api.Refused && error.after ? ` Try again in ${error.after} s.` : "";
      this.refuse((error instanceof Error ? error.message : String(error)) + after);
      announce($("refusal").textContent);
    } finally {
      button.disabled = false;
    }
  }

  /** Put a word where the cursor is. @param {string} word */
  insert(word) {
    const { value, selectionStart: from, selectionEnd: to } = this.prompt;
    const before = value.slice(0, from);
    const after = value.slice(to);
    const gap = before && !/\s$/.test(before) ? " " : "";
    const put = `${gap}${word}${after && !/^[\s,.]/.test(after) ? " " : ""}`;
    this.prompt.setRangeText(put, from, to, "end");
    this.changed();
    announce(`${word} added.`);
  }

  /** Take the settings of a request over. @param {Record<string, any>} request */
  read(request) {
    /** @type {Record<string, any>} */
    const wishes = {};
    const { models } = this.details;
    const model = models.find(({ name }) => name === request.model) ?? models[0];
    /** @type {Record<string, any>} */
    const own = { ...model?.defaults, size: model?.default_size, model: models[0]?.name };
    for (const name of WISHES) {
      const value = request[name];
      if (value != null && value !== "" && String(value) !== String(own[name])) wishes[name] = value;
    }
    if (request.count > 1 && request.count !== COUNT) wishes.count = request.count;
    this.prompt.value = request.prompt ?? "";
    this.start.set(null);
    this.details.wishes = wishes;
    this.details.offer(models);
    this.changed();
    this.show();
  }

  /** @param {number} seed */
  seed(seed) {
    this.details.wish({ ...this.details.wishes, seed });
    this.changed();
    this.show();
  }

  /** Begin with a picture of the server's. @param {api.Picture} picture */
  startFrom(picture) {
    this.start.set({ id: picture.id, width: picture.width, height: picture.height, strength: 0.75 });
    this.changed();
    this.show();
  }

  /** @param {string} prompt */
  write(prompt) {
    this.prompt.value = prompt;
    this.changed();
    this.show();
  }

  show() {
    go("draw");
    requestAnimationFrame(() => {
      this.prompt.focus();
      this.prompt.setSelectionRange(this.prompt.value.length, this.prompt.value.length);
    });
  }
}
