/**
 * The page begins here: puts the parts together, shows one of three views, asks the server where things
 * stand.
 */

import * as api from "./api.js";
import { knowModels, onNewJob } from "./actions.js";
import { colours } from "./colours.js";
import { watchConnection } from "./connection.js";
import { closable, keyPrompt } from "./dialogs.js";
import { $, toast } from "./dom.js";
import { Feed } from "./feed.js";
import { Gallery } from "./gallery.js";
import { jobs, refresh } from "./jobs.js";
import { Composer } from "./prompt.js";
import { Queue } from "./queue.js";
import { shortcuts } from "./shortcuts.js";
import { Viewer } from "./viewer.js";
import { go, views } from "./views.js";

const OPENING = 1_500; // ms between questions whether a model is open

colours();
closable();
api.onKeyWanted(keyPrompt);

const composer = new Composer();
const viewer = new Viewer(composer);
const gallery = new Gallery(viewer);
const feed = new Feed(
  {
    open: (job, at, from) =>
      viewer.open(jobs.get(job.id)?.pictures ?? job.pictures, at, { closed: () => from.focus() }),
    edit: (job) => composer.read({ ...source(job).request, seed: null }),
    parent: (id) => void feed.reveal(id).catch(say),
  },
  (prompt) => composer.write(prompt),
);
new Queue((job) => void feed.reveal(job.id).catch(say));
onNewJob((job) => void feed.reveal(job.id).catch(say));

/**
 * The job whose words and settings made this one: an enlargement has none of its own.
 * @param {api.Job} job
 */
function source(job) {
  const parent = job.parent ? jobs.get(job.parent) : undefined;
  return job.request.upscale && parent ? parent : job;
}

/** @param {unknown} error */
function say(error) {
  if (!(error instanceof api.Unreachable))
    toast(error instanceof Error ? error.message : String(error), { bad: true });
}

let meetings = 0;

/** Ask which models there are, until there is one: a server that has just started opens them first. */
async function meet() {
  const meeting = (meetings += 1);
  for (;;) {
    const models = await api.listModels();
    if (meeting !== meetings) return;
    if (models.length) {
      knowModels(models);
      gallery.offer(models);
      return composer.offer(models);
    }
    $("summary").textContent = "The model is being opened…";
    await new Promise((done) => setTimeout(done, OPENING));
  }
}

/** Everything from the server: at the start, and `again` when it was away. */
async function load(again = false) {
  void meet().catch(say);
  const who = await api.session();
  $("sign-out").hidden = !who.needed;
  gallery.stale ||= again;
  if (!$("gallery").hidden) await gallery.shown();
  await Promise.all([feed.load(), refresh()]);
}

$("skip").addEventListener("click", (/** @type {Event} */ event) => {
  event.preventDefault();
  composer.show();
});
$("sign-out").addEventListener("click", async () => {
  await api.signOut().catch(say);
  location.reload();
});
watchConnection(() => void load(true).catch(say));
shortcuts({
  "/": () => composer.show(),
  d: () => go("draw", true),
  g: () => go("gallery", true),
  q: () => go("queue", true),
});
composer.changed();
views((name) => {
  if (viewer.dialog.open) viewer.leave();
  if (name === "gallery") void gallery.shown();
});
void load().catch(say);
