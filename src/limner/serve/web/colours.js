/**
 * The switch between the system's colours, light and dark; theme.js applies the choice before the first
 * paint.
 */

import { $ } from "./dom.js";

const NAMES = /** @type {const} */ (["auto", "light", "dark"]);
const SAID = { auto: "as the system has them", light: "light", dark: "dark" };

/** Make the button of the header go round the three. */
export function colours() {
  const root = document.documentElement;
  const said = root.dataset.theme;
  let now = said === "light" || said === "dark" ? said : "auto";
  const show = () => {
    if (now === "auto") delete root.dataset.theme;
    else root.dataset.theme = now;
    const words = `Colours: ${SAID[/** @type {keyof typeof SAID} */ (now)]}`;
    $("theme").setAttribute("aria-label", words);
    $("theme").title = words;
    $("theme-icon").setAttribute("href", `#i-${now}`);
  };
  $("theme").addEventListener("click", () => {
    now = NAMES[(NAMES.indexOf(/** @type {any} */ (now)) + 1) % NAMES.length];
    try {
      if (now === "auto") localStorage.removeItem("limner.theme");
      else localStorage.setItem("limner.theme", now); // plain text: theme.js reads it before any module
    } catch {
      // not kept
    }
    show();
  });
  show();
}
