/** How things are said: numbers, times, states, actions. */

/** @type {Record<string, string>} */
const DONE_TO = {
  vary_subtle: "Varied subtly",
  vary_strong: "Varied strongly",
  reroll: "Drawn again",
  upscale: "Upscaled",
  zoom: "Zoomed out",
  pan: "Panned",
  region: "Region drawn anew",
  remix: "Remixed",
};

/** @param {number} many  @param {string} noun */
export function counted(many, noun) {
  return `${many} ${noun}${many === 1 ? "" : "s"}`;
}

/** @param {number} place  1 is the next */
export function ordinal(place) {
  const ends = { one: "st", two: "nd", few: "rd", other: "th" };
  const kind = new Intl.PluralRules("en", { type: "ordinal" }).select(place);
  return `${place}${ends[/** @type {keyof typeof ends} */ (kind)]}`;
}

/** "3 minutes ago". @param {number} seconds  since 1970 */
export function ago(seconds) {
  const past = Date.now() / 1000 - seconds;
  const words = new Intl.RelativeTimeFormat("en", { numeric: "auto" });
  if (past < 45) return "just now";
  if (past < 3600) return words.format(-Math.max(1, Math.round(past / 60)), "minute");
  if (past < 86_400) return words.format(-Math.round(past / 3600), "hour");
  if (past < 86_400 * 30) return words.format(-Math.round(past / 86_400), "day");
  return new Date(seconds * 1000).toLocaleDateString("en", { dateStyle: "medium" });
}

/** @param {number} width  @param {number} height  in pixels */
export function sized(width, height) {
  return `${width} × ${height}`;
}

/** Where a job stands, as a line. @param {import("./api.js").Job} job */
export function standing(job) {
  if (job.state === "queued") {
    if (job.attempts > 0) return "Interrupted; back in the queue";
    if (job.position === 1) return "Next in the queue";
    return job.position ? `${ordinal(job.position)} in the queue` : "In the queue";
  }
  if (job.state === "running") {
    if (job.cancel) return "Stopping";
    return job.progress > 0 ? `Drawing, ${Math.round(job.progress * 100)} %` : "Starting";
  }
  if (job.state === "cancelled") return "Cancelled";
  if (job.state === "failed") return "Failed";
  return "Done";
}

/**
 * What a job did to the picture that it came from, or "" for a first one.
 * @param {import("./api.js").Job} job
 */
export function lineage(job) {
  if (!job.action) return "";
  const what = DONE_TO[job.action] ?? job.action;
  if (job.action === "reroll" || job.index === null || job.index === undefined) return what;
  return `${what} from picture ${job.index + 1}`;
}

/**
 * What a job was drawn with, in one line: what the model would choose by itself goes without saying.
 * @param {import("./api.js").Job} job
 * @param {Record<string, any>} own  settings of the model itself
 */
export function settings(job, own) {
  const { request, pictures } = job;
  const [height, width] = pictures[0] ? [pictures[0].height, pictures[0].width] : (request.size ?? []);
  const chosen = (/** @type {string} */ name) => request[name] != null && request[name] !== own[name];
  const parts = [
    job.model,
    width && sized(width, height),
    request.style,
    chosen("steps") && counted(request.steps, "step"),
    chosen("guidance") && `guidance ${request.guidance}`,
    chosen("sampler") && request.sampler,
    request.image && `strength ${request.strength ?? 0.75}`,
    request.seed != null && `seed ${request.seed}`,
  ];
  const whole = (/** @type {string} */ part) => part.replaceAll(" ", "\u00a0"); // lines break between them
  return parts.filter(Boolean).map(whole).join(" · ");
}

/**
 * What was asked for in words; of an enlargement, those of its picture.
 * @param {import("./api.js").Job} job
 */
export function words(job) {
  return job.request.prompt || job.pictures[0]?.prompt || "";
}

/** How many pictures a job makes. @param {import("./api.js").Job} job */
export function many(job) {
  return job.request.upscale ? 1 : (job.request.count ?? 4);
}

const INFOTEXT = /** @type {const} */ ([
  ["Steps", "steps"],
  ["Sampler", "sampler"],
  ["CFG scale", "guidance"],
  ["Seed", "seed"],
  ["Size", "size"],
  ["Model", "model"],
  ["Style", "style"],
  ["Denoising strength", "strength"],
]);

/** Settings in the form that other programs read. @param {Record<string, any>} request */
export function infotext(request) {
  const lines = [request.prompt ?? ""];
  if (request.negative_prompt) lines.push(`Negative prompt: ${request.negative_prompt}`);
  const value = (/** @type {string} */ name) => {
    if (name === "size") return request.size && `${request.size[1]}x${request.size[0]}`;
    if (name === "strength" && !request.image) return null;
    return request[name];
  };
  const told = INFOTEXT.map(([label, name]) => [label, value(name)]).filter(
    ([, said]) => said !== null && said !== undefined,
  );
  return [...lines, told.map(([label, said]) => `${label}: ${said}`).join(", ")].join("\n");
}
