/**
 * What the page knows of its jobs, and how it keeps up: the first unfinished ones are watched by a stream,
 * the
 * others asked after, since a browser opens only six connections to one server. All of it can be lost at
 * any time
 * (a reload, a restart of the server) and is then asked for again.
 */

import * as api from "./api.js";
import { blobOf, events } from "./events.js";

/** @typedef {import("./api.js").Job} Job */

const STREAMS = 2; // at once and for this page; other pages need connections, too
const BUSY = 2_000; // ms between questions while jobs are unfinished
const QUIET = 15_000; // ms between questions otherwise: jobs may come from elsewhere
const ENDED = ["done", "failed", "cancelled"];

/** @type {Map<string, Job>} */
export const jobs = new Map();

/** Tells "job" (detail: a Job that is new or changed) and "preview" (detail: {id, index, blob}). */
export const changes = new EventTarget();

/** @type {Map<string, AbortController>} */
const streams = new Map();
let timer = 0;

/** @param {Job} job */
export function ended(job) {
  return ENDED.includes(job.state);
}

/** Unfinished jobs, the next to be finished first. */
export function unfinished() {
  const open = [...jobs.values()].filter((job) => !ended(job));
  const rank = (/** @type {Job} */ job) => (job.state === "running" ? 0 : (job.position ?? 1e6));
  return open.sort((a, b) => rank(a) - rank(b) || a.created - b.created);
}

/** Take what the server says about a job. A job that has ended stays so. @param {Job} job */
export function take(job) {
  const before = jobs.get(job.id);
  if (before && ended(before) && !ended(job)) return;
  if (before && before.state === "running" && job.state === "running" && before.attempts === job.attempts) {
    job = { ...job, progress: Math.max(before.progress, job.progress) }; // answers may overtake each other
  }
  jobs.set(job.id, job);
  changes.dispatchEvent(new CustomEvent("job", { detail: job }));
  follow();
}

/** @param {string} id  @param {Partial<Job>} more */
function amend(id, more) {
  const job = jobs.get(id);
  if (job && !ended(job)) take({ ...job, ...more });
}

/** Watch the jobs that are next, and stop watching the others. */
function follow() {
  const wanted = document.hidden
    ? []
    : unfinished()
        .slice(0, STREAMS)
        .map((job) => job.id);
  for (const [id, stop] of streams) if (!wanted.includes(id)) stop.abort();
  for (const id of wanted) if (!streams.has(id)) watch(id);
}

/** @param {string} id */
async function watch(id) {
  const stop = new AbortController();
  streams.set(id, stop);
  let over = false;
  try {
    for await (const { event, data } of events(await api.jobEvents(id, stop.signal))) {
      if (event === "progress") amend(id, data);
      else if (event === "preview") show(id, data);
      else if (event === "end") {
        over = true;
        take(data.job ?? data);
      }
    }
  } catch (error) {
    if (!stop.signal.aborted && error instanceof api.Refused && error.status === 404) over = true;
  }
  if (streams.get(id) === stop) streams.delete(id);
  if (!over && !stop.signal.aborted) soon(500); // it broke off: ask, which notices a server that is away
}

/** @param {string} id  @param {{index: number, image: string}} preview */
function show(id, { index, image }) {
  const job = jobs.get(id);
  if (!job || ended(job)) return;
  changes.dispatchEvent(new CustomEvent("preview", { detail: { id, index, blob: blobOf(image) } }));
}

/** Ask after everything unfinished, then again later. @returns {Promise<void>} */
export async function refresh() {
  clearTimeout(timer);
  timer = 0;
  try {
    const [open, latest] = await Promise.all([
      api.queue(),
      unfinished().length ? { items: [] } : api.listJobs({ limit: 10 }),
    ]);
    const told = [...latest.items, ...open.items];
    const seen = new Set(told.map((job) => job.id));
    const silent = unfinished().filter((job) => !seen.has(job.id));
    for (const job of told) take(job);
    for (const { id } of silent.slice(0, 20)) take(await api.getJob(id));
    follow();
  } catch (error) {
    if (!(error instanceof api.Unreachable || error instanceof api.Refused)) throw error;
  } finally {
    soon(unfinished().length ? BUSY : QUIET);
  }
}

/** @param {number} wait  ms until the next `refresh`, unless one comes sooner */
function soon(wait) {
  if (document.hidden) return;
  clearTimeout(timer);
  timer = setTimeout(refresh, wait);
}

document.addEventListener("visibilitychange", () => {
  if (!document.hidden) return void refresh();
  clearTimeout(timer);
  follow();
});
