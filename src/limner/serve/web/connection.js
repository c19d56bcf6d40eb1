/** Says when the server is away, and notices when it is there again. */

import * as api from "./api.js";
import { $ } from "./dom.js";

const WAITS = [500, 1_000, 2_000, 3_000]; // ms between looks, the last one for good

let away = false;

/**
 * @param {() => void} back  called when a server that was away answers again
 */
export function watchConnection(back) {
  const line = $("connection");

  async function look() {
    for (let tries = 0; away; tries += 1) {
      await new Promise((done) => setTimeout(done, WAITS[Math.min(tries, WAITS.length - 1)]));
      if (await api.answers()) {
        away = false;
        line.className = "connection again";
        line.textContent = "Connected again.";
        setTimeout(() => {
          if (!away) line.textContent = "";
        }, 4_000);
        back();
      }
    }
  }

  api.onContact((reachable) => {
    if (reachable || away) return;
    away = true;
    line.className = "connection lost";
    line.textContent = "Connection lost. What was accepted is safe; trying again…";
    void look();
  });
}
