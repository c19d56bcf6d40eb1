/** What this browser remembers between visits: the draft, the colours. Everything else is the server's. */

/**
 * @template T
 * @param {string} name
 * @param {T} otherwise  what to return when nothing is kept, or the browser keeps nothing
 * @returns {T}
 */
export function kept(name, otherwise) {
  try {
    const text = localStorage.getItem(`limner.${name}`);
    return text === null ? otherwise : JSON.parse(text);
  } catch {
    return otherwise;
  }
}

/** @param {string} name  @param {unknown} value  undefined forgets it */
export function keep(name, value) {
  try {
    if (value === undefined) localStorage.removeItem(`limner.${name}`);
    else localStorage.setItem(`limner.${name}`, JSON.stringify(value));
  } catch {
    // private windows and full disks: the page works without a memory
  }
}
