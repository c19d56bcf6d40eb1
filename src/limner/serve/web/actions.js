/** What can be done with a picture. Every action makes a new job; the picture itself never changes. */

import * as api from "./api.js";
import { announce, toast, topmost } from "./dom.js";
import { changes, jobs, take } from "./jobs.js";
import { infotext } from "./say.js";

/** @typedef {import("./api.js").Picture} Picture */
/**
 * @typedef {{id: string, words: string, short?: string, drawing: string, body: Record<string, any>,
 *   needs?: string[]}} Action
 *   `needs`: what the model must be able to do, any of it, as GET /models says it
 */

/** @type {Action[]} */
export const VARY = [
  {
    id: "vary_subtle",
    words: "Vary subtly",
    short: "Subtly",
    drawing: "subtle",
    body: { action: "vary_subtle" },
    needs: ["image", "vary"],
  },
  {
    id: "vary_strong",
    words: "Vary strongly",
    short: "Strongly",
    drawing: "strong",
    body: { action: "vary_strong" },
    needs: ["image", "vary"],
  },
];
/** @type {Action[]} */
export const LARGER = [
  { id: "upscale", words: "Upscale 2×", drawing: "upscale", body: { action: "upscale", factor: 2 } },
  { id: "upscale4", words: "Upscale 4×", drawing: "upscale", body: { action: "upscale", factor: 4 } },
  {
    id: "zoom15",
    words: "Zoom out 1.5×",
    drawing: "zoom",
    body: { action: "zoom", factor: 1.5 },
    needs: ["extend"],
  },
  {
    id: "zoom2",
    words: "Zoom out 2×",
    drawing: "zoom",
    body: { action: "zoom", factor: 2 },
    needs: ["extend"],
  },
];
/** @type {Action[]} */
export const PAN = ["left", "up", "down", "right"].map((direction) => ({
  id: `pan_${direction}`,
  words: `Pan ${direction}`,
  drawing: direction,
  body: { action: "pan", direction },
  needs: ["extend"],
}));

/** @type {(job: api.Job) => void} */
let reveal = () => {};

/** @param {(job: api.Job) => void} show  brings a new job into view */
export function onNewJob(show) {
  reveal = show;
}

/** @type {api.Model[]} */
let models = [];

/** @param {api.Model[]} known */
export function knowModels(known) {
  models = known;
}

/** Settings that a model chooses by itself. @param {string} model  @returns {Record<string, any>} */
export function ownSettings(model) {
  return models.find(({ name }) => name === model)?.defaults ?? {};
}

/**
 * Whether the model of a job can do this; a model that is not known is asked.
 * @param {string} model
 * @param {string[]} [needs]
 */
export function able(model, needs) {
  const known = models.find(({ name }) => name === model);
  return !needs || !known || needs.some((one) => known.can.includes(one));
}

/**
 * Order a new job from a picture of a job and bring it into view.
 * @param {{job: string, index?: number}} from
 * @param {Record<string, any>} body  see POST /jobs/{id}/actions
 * @returns {Promise<api.Job>}
 * @throws what the server refuses
 */
export async function perform({ job, index }, body) {
  const made = await api.act(job, { index: index ?? 0, ...body }, api.unique());
  take(jobs.get(made.id) ?? made);
  announce("Accepted.");
  reveal(made);
  return made;
}

/**
 * As `perform`, saying itself what was refused.
 * @param {{job: string, index?: number}} from
 * @param {Record<string, any>} body
 */
export async function order(from, body) {
  try {
    await perform(from, body);
  } catch (error) {
    toast(error instanceof Error ? error.message : String(error), { bad: true });
  }
}

/** Give a star or take it away, shown at once and undone if the server refuses. @param {Picture} picture */
export async function star(picture) {
  const starred = !picture.starred;
  mark(picture.id, { starred });
  announce(starred ? "Starred." : "Star taken away.");
  try {
    mark(picture.id, await api.rate(picture.id, { starred }));
  } catch (error) {
    mark(picture.id, { starred: !starred });
    toast(error instanceof Error ? error.message : String(error), { bad: true });
  }
}

/** Tell every view what is new about a picture. @param {string} id  @param {Partial<Picture>} news */
function mark(id, news) {
  const { starred, rating } = news;
  const told = { ...(starred === undefined ? {} : { starred }), ...(rating === undefined ? {} : { rating }) };
  for (const job of jobs.values())
    for (const picture of job.pictures) if (picture.id === id) Object.assign(picture, told);
  changes.dispatchEvent(new CustomEvent("picture", { detail: { id, ...told } }));
}

/** Remove a picture for good. @param {Picture} picture  @throws what the server refuses */
export async function remove(picture) {
  await api.removePicture(picture.id);
  const job = picture.job ? jobs.get(picture.job) : undefined;
  if (job) job.pictures = job.pictures.filter(({ id }) => id !== picture.id);
  changes.dispatchEvent(new CustomEvent("gone", { detail: picture }));
  announce("Deleted.");
}

/** Settings as text, in the form that other programs read. @param {Picture} picture */
export async function copySettings(picture) {
  await copy(infotext(await api.pictureSettings(picture.id)));
}

/** @param {string} text */
async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = document.createElement("textarea"); // without https there is no clipboard but this one
  area.value = text;
  area.className = "hidden";
  (topmost() ?? document.body).append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}
