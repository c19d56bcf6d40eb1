/** What the built-in model can draw, to be searched and put into the prompt by a press. */

import * as api from "./api.js";
import { el, icon } from "./dom.js";
import { counted } from "./say.js";

const MOST = 600; // words shown at once; more than the model has

/**
 * @param {HTMLElement} box  empty; filled on the first `open`
 * @param {(word: string) => void} insert
 * @returns {() => void} open: load the words and put the focus into the search
 */
export function words(box, insert) {
  /** @type {AbortController | null} */
  let asked = null;
  let timer = 0;
  const search = el("input", {
    type: "search",
    id: "word-search",
    placeholder: "Search: fox, fruit, sky…",
    autocomplete: "off",
  });
  const label = el(
    "label",
    { className: "field search" },
    el("span", { className: "hidden" }, "Search the words"),
    icon("search"),
    search,
  );
  const status = el("p", { className: "hint", role: "status" });
  const list = el("div", { className: "chips" });

  async function load() {
    asked?.abort();
    asked = new AbortController();
    const { signal } = asked;
    try {
      const found = await api.findWords(search.value.trim(), MOST, signal);
      list.replaceChildren(...groups(found.items).map(([kind, members]) => group(kind, members)));
      status.textContent = found.items.length
        ? `${counted(found.items.length, "word")}. Press one to add it.`
        : "No such word.";
    } catch (error) {
      if (!signal.aborted) status.textContent = error instanceof Error ? error.message : String(error);
    }
  }

  /** @param {string} kind  @param {api.Word[]} members */
  function group(kind, members) {
    const chips = members.map(({ word, synonyms = [] }) => {
      const title = synonyms.length ? `also: ${synonyms.slice(0, 6).join(", ")}` : undefined;
      return el("button", { type: "button", className: "chip", title, onclick: () => insert(word) }, word);
    });
    return el(
      "div",
      { className: "kind", role: "group", aria: { label: kind } },
      el("h3", {}, kind),
      el("div", {}, ...chips),
    );
  }

  search.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(load, 150);
  });
  search.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    if (event.key === "Enter") event.preventDefault(); // it is no prompt yet
  });

  return () => {
    if (!box.firstChild) {
      box.append(el("div", { className: "seek" }, label, status), list);
      void load();
    }
    search.focus();
  };
}

/**
 * In the order of the server, which is that of relevance.
 * @param {api.Word[]} found
 * @returns {[string, api.Word[]][]}
 */
function groups(found) {
  /** @type {Map<string, api.Word[]>} */
  const kinds = new Map();
  for (const word of found) kinds.set(word.category, [...(kinds.get(word.category) ?? []), word]);
  return [...kinds];
}
