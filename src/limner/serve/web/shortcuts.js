/** Single keys that act, where no text is being written. */

import { $, el, topmost } from "./dom.js";
import { keep, kept } from "./keep.js";

const LISTED = [
  ["Enter", "draw, from the prompt"],
  ["/", "write a prompt"],
  ["d, g, q", "Draw, Gallery, Queue"],
  ["← → ↑ ↓", "go through the pictures"],
  ["Enter", "open a picture"],
  ["s", "star, or take the star away"],
  ["v, Shift v", "vary subtly, strongly (open picture)"],
  ["u", "upscale (open picture)"],
  ["e", "edit a region (open picture)"],
  ["r", "remix (open picture)"],
  ["Esc", "close"],
  ["?", "this list"],
];

/** @param {EventTarget | null} target  @returns {boolean} whether keys are text there */
export function writes(target) {
  if (!(target instanceof HTMLElement)) return false;
  if (target instanceof HTMLInputElement)
    return !["checkbox", "radio", "button", "file", "range"].includes(target.type);
  return target instanceof HTMLTextAreaElement || target instanceof HTMLSelectElement;
}

/** @param {KeyboardEvent} event  @returns {string | null} the key, if it may act alone here */
export function single(event) {
  if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || event.isComposing)
    return null;
  if (writes(event.target) || !$("keys-on").checked) return null;
  return event.key;
}

/** @param {Record<string, () => void>} pages  what the single keys of the whole page do */
export function shortcuts(pages) {
  $("keys").append(
    ...LISTED.map(([keys, does]) => el("div", {}, el("dt", {}, el("kbd", {}, keys)), el("dd", {}, does))),
  );
  $("keys-on").checked = kept("keys", true);
  $("keys-on").addEventListener("change", () => keep("keys", $("keys-on").checked));
  const help = () => $("help").showModal();
  $("help-open").addEventListener("click", help);
  document.addEventListener("keydown", (event) => {
    const key = single(event);
    if (key === null || topmost()) return;
    const act = key === "?" ? help : pages[key];
    if (!act) return;
    event.preventDefault();
    act();
  });
}
