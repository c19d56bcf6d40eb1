/** Building the page. Text always goes in as text: nothing here, or anywhere, parses markup. */

const SVG = "http://www.w3.org/2000/svg";

/** @param {string} id  @returns {any} the element of index.html with this id */
export function $(id) {
  return document.getElementById(id);
}

/**
 * An element. Properties that start with "on" listen, `data` and `aria` are mappings, known properties are
 * set
 * and everything else becomes an attribute; null, undefined and false are left out.
 * @param {string} tag
 * @param {Record<string, any>} [props]
 * @param {...(Node | string | number | null | undefined | false)} children
 * @returns {any}
 */
export function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "data") Object.assign(node.dataset, value);
    else if (name === "aria")
      for (const [key, said] of Object.entries(value)) node.setAttribute(`aria-${key}`, String(said));
    else if (name in node) /** @type {any} */ (node)[name] = value;
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children)
    if (child !== null && child !== undefined && child !== false) node.append(/** @type {any} */ (child));
  return node;
}

/** A drawing of the sprite in index.html, hidden from screen readers. @param {string} name */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

/**
 * A button with a drawing; its words are shown, or only spoken and shown as a tip when `bare`.
 * @param {string} drawing
 * @param {string} words
 * @param {(event: Event) => void} onclick
 * @param {{bare?: boolean, className?: string, aria?: Record<string, any>, data?: Record<string, string>,
 *   disabled?: boolean}} [more]
 * @returns {HTMLButtonElement}
 */
export function button(drawing, words, onclick, { bare = false, className, aria = {}, data, disabled } = {}) {
  const kind = className ?? (bare ? "icon" : "quiet");
  const named = bare ? { ...aria, label: words } : aria;
  const props = {
    type: "button",
    className: kind,
    onclick,
    aria: named,
    data,
    disabled,
    title: bare ? words : undefined,
  };
  return el("button", props, icon(drawing), !bare && el("span", {}, words));
}

/** The dialog that lies on top of everything, if one is open. @returns {HTMLElement | undefined} */
export function topmost() {
  return [...document.querySelectorAll("dialog")].filter((dialog) => dialog.open).pop();
}

/**
 * Say something to who listens rather than looks. Beside an open dialog nothing is heard: it is said in it.
 * @param {string} words
 */
export function announce(words) {
  (topmost()?.querySelector("[role=status]") ?? $("live")).textContent = words;
}

const toasts = $("toasts");

/**
 * A message that goes away by itself, or by being pressed.
 * @param {string} words
 * @param {{bad?: boolean}} [how]
 */
export function toast(words, { bad = false } = {}) {
  const note = el(
    "div",
    { className: "toast" },
    icon(bad ? "warn" : "note"),
    el("p", {}, words),
    button("close", "Dismiss", () => note.remove(), { bare: true }),
  );
  const place = topmost() ?? document.body; // nothing is seen beneath a dialog
  if (toasts.parentElement !== place) place.append(toasts);
  toasts.append(note);
  while (toasts.children.length > 3) toasts.firstChild.remove();
  setTimeout(() => note.remove(), bad ? 12_000 : 5_000);
}

/** Whether who looks asked for less movement. */
export function calm() {
  return matchMedia("(prefers-reduced-motion: reduce)").matches;
}
