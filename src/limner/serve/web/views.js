/** The three views of the page. The address names the one that is shown, so that a reload shows it again. */

import { $ } from "./dom.js";

const VIEWS = ["draw", "gallery", "queue"];

/** @type {(name: string) => void} */
let tell = () => {};

/**
 * Follow the address from now on.
 * @param {(name: string) => void} shown  hears which view is shown, whenever that may have changed
 */
export function views(shown) {
  tell = shown;
  addEventListener("hashchange", () => {
    const name = named();
    const news = $(name).hidden;
    show(name);
    if (news) reach(name);
  });
  show(named());
}

/** Show a view, at once. @param {string} name  @param {boolean} [focus]  which goes along */
export function go(name, focus = false) {
  if (location.hash !== `#${name}`) location.hash = name;
  show(name);
  if (focus) reach(name);
}

/** Put the focus on the title of a view; on Draw it is the prompt's to take. @param {string} name */
function reach(name) {
  if (name !== "draw") $(`${name}-title`).focus({ preventScroll: true });
}

function named() {
  return VIEWS.find((view) => location.hash === `#${view}`) ?? "draw";
}

/** @param {string} name */
function show(name) {
  for (const view of VIEWS) {
    $(view).hidden = view !== name;
    if (view === name) $(`to-${view}`).setAttribute("aria-current", "page");
    else $(`to-${view}`).removeAttribute("aria-current");
  }
  document.title = name === "draw" ? "Limner" : `${name[0].toUpperCase()}${name.slice(1)} · Limner`;
  tell(name);
}
