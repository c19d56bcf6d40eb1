/** Server-sent events over fetch: unlike EventSource it sends what it is told to and says why it ended. */

/**
 * @param {Response} answer  whose body is text/event-stream
 * @yields {{event: string, data: any}} every event with its JSON; comments and unknown fields are passed over
 */
export async function* events(answer) {
  if (!answer.body) return;
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      text += value;
      const blocks = text.split(/\r\n\r\n|\n\n|\r\r/);
      text = blocks.pop() ?? "";
      for (const block of blocks) {
        const said = parse(block);
        if (said) yield said;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** @param {string} block  the lines of one event */
function parse(block) {
  let event = "message";
  const data = [];
  for (const line of block.split(/\r\n|\n|\r/)) {
    const at = line.indexOf(":");
    if (at === 0) continue;
    const name = at < 0 ? line : line.slice(0, at);
    const value = at < 0 ? "" : line.slice(at + 1).replace(/^ /, "");
    if (name === "event") event = value;
    if (name === "data") data.push(value);
  }
  return data.length ? { event, data: JSON.parse(data.join("\n")) } : null;
}

/** @param {string} base64  @param {string} type  @returns {Blob} */
export function blobOf(base64, type = "image/jpeg") {
  return new Blob([Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0))], { type });
}
