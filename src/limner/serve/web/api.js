/** The server's routes as functions. The page uses nothing that another client could not. */

/**
 * @typedef {{id: string, job: string|null, index: number, seed: number, width: number, height: number, url:
 *   string,
 *   starred: boolean, rating: number|null, prompt?: string, created?: number, model?: string}} Picture
 * @typedef {"queued"|"running"|"done"|"failed"|"cancelled"} State
 * @typedef {{id: string, request: Record<string, any>, model: string, parent: string|null, action:
 *   string|null,
 *   index: number|null, state: State, attempts: number, position: number|null, progress: number, stage:
 *   string,
 *   seeds: number[], pictures: Picture[], notices: string[], warnings: string[],
 *   failure: {code: string, message: string}|null, created: number, started: number|null, ended: number|null,
 *   cancel: boolean}} Job
 * @typedef {{name: string, family: string, default_size: [number, number], sizes: [number, number]|null,
 *   styles: string[], can: string[], defaults: Record<string, any>}} Model
 * @typedef {{word: string, category: string, synonyms?: string[]}} Word
 * @typedef {{id: string, width: number, height: number, settings: Record<string, any>|null}} Upload
 */
/**
 * @template T
 * @typedef {{items: T[], next: string|null}} Page
 */

const ROOT = new URL("../", import.meta.url); // of the server, also behind a proxy that adds a folder

/** The server said no, and why. */
export class Refused extends Error {
  /**
   * @param {number} status
   * @param {string} message
   * @param {string} code
   * @param {number|null} after seconds
   */
  constructor(status, message, code, after) {
    super(message);
    this.status = status;
    this.code = code;
    this.after = after;
  }
}

/** Nobody answered. */
export class Unreachable extends Error {
  constructor() {
    super("The server does not answer. What was accepted is safe; this page tries again by itself.");
  }
}

/** @type {() => Promise<void>} */
let askForKey = async () => {
  throw new Refused(401, "this server asks for a key", "no_key", null);
};

/** @param {() => Promise<void>} ask  resolves once there is a session */
export function onKeyWanted(ask) {
  askForKey = ask;
}

/** @type {(reachable: boolean) => void} */
let tell = () => {};

/** @param {(reachable: boolean) => void} listener  hears after every call whether somebody answered */
export function onContact(listener) {
  tell = listener;
}

/**
 * @param {string} path  relative to the server
 * @param {RequestInit} [options]
 * @returns {Promise<Response>} an answer below 400
 * @throws {Refused | Unreachable}
 */
export async function call(path, options = {}) {
  for (;;) {
    let answer;
    try {
      answer = await fetch(new URL(path, ROOT), { credentials: "same-origin", ...options });
    } catch (error) {
      if (options.signal?.aborted) throw error;
      tell(false);
      throw new Unreachable();
    }
    if ([502, 503, 504].includes(answer.status) && !(await isOurs(answer.clone()))) {
      tell(false); // a proxy answers for a server that is away
      throw new Unreachable();
    }
    tell(true);
    if (answer.ok) return answer;
    if (answer.status === 401 && !(path === "session" && options.method === "POST")) {
      await askForKey();
      continue;
    }
    throw await refusal(answer);
  }
}

/** @param {Response} answer */
async function isOurs(answer) {
  return Boolean((await answer.json().catch(() => null))?.error);
}

/** @param {Response} answer */
async function refusal(answer) {
  const told = (await answer.json().catch(() => null))?.error;
  const after = Number(answer.headers.get("retry-after")) || null;
  return new Refused(
    answer.status,
    told?.message ?? `The server answered ${answer.status}.`,
    told?.code ?? "",
    after,
  );
}

/** @param {string} path  @param {AbortSignal} [signal] */
async function get(path, signal) {
  return (await call(path, { signal })).json();
}

/**
 * @param {string} path
 * @param {unknown} body
 * @param {string} [method]
 * @param {Record<string, string>} [headers]
 */
async function send(path, body, method = "POST", headers = {}) {
  const told = {
    method,
    body: JSON.stringify(body),
    headers: { "content-type": "application/json", ...headers },
  };
  const answer = await call(path, told);
  return answer.status === 204 ? null : answer.json();
}

/** @param {Record<string, any>} values  those that are "", null, undefined or false are left out */
function query(values) {
  const said = Object.entries(values).filter(([, value]) => value !== "" && value != null && value !== false);
  return new URLSearchParams(said.map(([name, value]) => [name, String(value)])).toString();
}

const enc = encodeURIComponent;

/** @param {Record<string, any>} request  @param {string} once  names the attempt: repeats are the same job
 *  @returns {Promise<Job>} */
export const submit = (request, once) => send("jobs", request, "POST", { "idempotency-key": once });

/** @param {{state?: State, before?: string, limit?: number}} [which]  @returns {Promise<Page<Job>>} */
export const listJobs = (which = {}) => get(`jobs?${query(which)}`);

/** @param {string} id  @returns {Promise<Job>} */
export const getJob = (id) => get(`jobs/${enc(id)}`);

/** @param {string} id  @returns {Promise<Job>} */
export const cancelJob = (id) => send(`jobs/${enc(id)}/cancel`, {});

/**
 * @param {string} id
 * @param {Record<string, any>} action
 * @param {string} once  as for `submit`
 * @returns {Promise<Job>}
 */
export const act = (id, action, once) =>
  send(`jobs/${enc(id)}/actions`, action, "POST", { "idempotency-key": once });

/** @param {string} id  @param {AbortSignal} signal */
export const jobEvents = (id, signal) =>
  call(`jobs/${enc(id)}/events`, { signal, headers: { accept: "text/event-stream" } });

/** @param {Blob} file  @param {string} [name]  @returns {Promise<Upload>} */
export async function upload(file, name = "picture.png") {
  const form = new FormData();
  form.append("file", file, name);
  return (await call("pictures", { method: "POST", body: form })).json();
}

/** @param {{search?: string, starred?: boolean, model?: string, before?: string, limit?: number}} [which]
 *  @param {AbortSignal} [signal]  @returns {Promise<Page<Picture>>} */
export const listPictures = (which = {}, signal) => get(`pictures?${query(which)}`, signal);

/** @param {string} id  @param {number} [side]  longest side of a thumbnail in pixels */
export const pictureUrl = (id, side) =>
  new URL(`pictures/${enc(id)}${side ? `?side=${side}` : ""}`, ROOT).href;

/** @param {string} id  the PNG with its settings */
export const downloadUrl = (id) => new URL(`pictures/${enc(id)}?as=png`, ROOT).href;

/** @param {string} id  @returns {Promise<Record<string, any>>} */
export const pictureSettings = (id) => get(`pictures/${enc(id)}/settings`);

/** @param {string} id  @param {{starred?: boolean, rating?: number}} mark  @returns {Promise<Picture>} */
export const rate = (id, mark) => send(`pictures/${enc(id)}`, mark, "PATCH");

/** @param {string} id */
export const removePicture = (id) => call(`pictures/${enc(id)}`, { method: "DELETE" });

/** @returns {Promise<Model[]>} */
export const listModels = async () => (await get("models")).items;

/**
 * @param {string} search
 * @param {number} limit
 * @param {AbortSignal} [signal]
 * @returns {Promise<Page<Word>>}
 */
export const findWords = (search, limit, signal) => get(`words?${query({ search, limit })}`, signal);

/** @param {string} key */
export const signIn = (key) => send("session", { key });

export const signOut = () => call("session", { method: "DELETE" });

/** @returns {Promise<{name: string, needed: boolean}>} who we are, and whether there are keys at all */
export const session = () => get("session");

/** Your jobs that have not ended. @returns {Promise<Page<Job>>} */
export const queue = () => get("queue");

/** Whether the server answers, well or unwell; never throws. @returns {Promise<boolean>} */
export async function answers() {
  try {
    const answer = await fetch(new URL("health", ROOT), { cache: "no-store" });
    return typeof (await answer.json()).status === "string";
  } catch {
    return false;
  }
}

/**
 * A name that nobody has used, for `submit`. crypto.randomUUID needs https, which a server at home seldom
 * has.
 */
export function unique() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) =>
    byte.toString(16).padStart(2, "0"),
  ).join("");
}
