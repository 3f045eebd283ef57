/** Tries again what has failed because the service did not answer, or was too busy to. Knows no page. */

import { ServiceError } from "./api.js";

const PAUSE_MILLISECONDS = 2000;

/** Whether an error may be gone at the next try. @param {unknown} error */
export const passes = (error) => error instanceof ServiceError && (error.status === 0 || error.status === 503);

export class Retry {
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;

  /** Try again after a pause, instead of what was to be tried before. @param {() => void} again */
  start(again) {
    this.stop();
    this.#timer = setTimeout(again, PAUSE_MILLISECONDS);
  }

  /** Try again after an error; not where it would be the same. @param {unknown} error @param {() => void} again */
  after(error, again) {
    if (passes(error)) this.start(again);
  }

  stop() {
    clearTimeout(this.#timer);
  }
}
