/** Dialogs. The browser's own <dialog> keeps the focus inside, closes on Escape and gives the focus back. */

import * as api from "./api.js";
import { $, el } from "./dom.js";
import { keep } from "./keep.js";

let number = 0;

/** Make the close buttons and the space around every dialog close it. */
export function closable() {
  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.addEventListener("click", (event) => {
      const { target } = event;
      if (
        target instanceof Element &&
        (target.closest("[data-close]") || (target === dialog && outside(dialog, event)))
      ) {
        dialog.close();
      }
    });
  }
}

/** @param {HTMLDialogElement} dialog  @param {MouseEvent} event */
function outside(dialog, event) {
  const box = dialog.getBoundingClientRect();
  const within =
    event.clientX >= box.left &&
    event.clientX <= box.right &&
    event.clientY >= box.top &&
    event.clientY <= box.bottom;
  return event.detail > 0 && !within && dialog.classList.contains("small");
}

/**
 * Ask for one thing.
 * @param {{title: string, text?: string, yes: string, field?: HTMLElement|null, must?: boolean}} what
 *   `must`: there is no way around an answer
 * @param {() => Promise<unknown>} [done]  what the answer does; what it throws is shown and the dialog stays
 * @returns {Promise<boolean>} whether it was answered
 */
export function ask({ title, text, yes, field, must = false }, done = async () => {}) {
  let answered = false;
  const error = el("p", { className: "refusal", role: "alert", hidden: true });
  const submit = el("button", { type: "submit", className: "primary" }, yes);
  const cancel =
    !must && el("button", { type: "button", className: "quiet", onclick: () => dialog.close() }, "Cancel");
  const heading = el("h2", { id: `ask-${(number += 1)}` }, title);
  const onsubmit = async (/** @type {Event} */ event) => {
    event.preventDefault();
    submit.disabled = true;
    try {
      await done();
      answered = true;
      dialog.close();
    } catch (problem) {
      error.textContent = problem instanceof Error ? problem.message : String(problem);
      error.hidden = false;
    } finally {
      submit.disabled = false;
    }
  };
  const ends = el("div", { className: "ends" }, cancel, submit);
  const form = el("form", { onsubmit }, heading, text && el("p", {}, text), field, error, ends);
  const dialog = el("dialog", { className: "small", aria: { labelledby: heading.id } }, form);
  document.body.append(dialog);
  return new Promise((resolve) => {
    dialog.addEventListener("cancel", (/** @type {Event} */ event) => {
      if (must) event.preventDefault();
    });
    dialog.addEventListener("close", () => {
      if (must && !answered) return void dialog.showModal(); // a browser lets a second Escape through
      dialog.remove();
      resolve(answered);
    });
    dialog.showModal();
  });
}

/** @type {Promise<void> | null} */
let asking = null;

/** One key prompt for all calls that need one. @returns {Promise<void>} once there is a session */
export function keyPrompt() {
  asking ??= askKey().finally(() => {
    asking = null;
  });
  return asking;
}

async function askKey() {
  const input = el("input", {
    type: "password",
    id: "key",
    autocomplete: "current-password",
    required: true,
    spellcheck: false,
  });
  const field = el("label", { className: "field" }, el("span", {}, "Key"), input);
  const text = "This server asks for a key. Keys begin with “limner-”; who runs the server makes them.";
  await ask({ title: "Who is there?", text, yes: "Sign in", field, must: true }, async () => {
    await api.signIn(input.value.trim());
    keep("signed-in", true);
    $("sign-out").hidden = false;
  });
}
