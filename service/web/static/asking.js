/** Asks for something until it comes: after which errors, how long to wait, and how to give up. Knows no page. */

import { ServiceError } from "./api.js";

const PASSING = new Set([0, 429, 502, 503, 504]); // no answer, too many requests, and what a busy service and its proxy say
const PAUSE_MILLISECONDS = 2000;
const LONGEST_PAUSE_MILLISECONDS = 60_000; // a proxy may name an hour

/** Whether an error may be gone at the next try. @param {unknown} error */
const passes = (error) => error instanceof ServiceError && PASSING.has(error.status);

/** Return how long to wait after an error, which the service may have said. @param {unknown} error @returns {number} milliseconds */
export function pauseAfter(error) {
  const asked = error instanceof ServiceError ? 1000 * error.retryAfterSeconds : 0;
  return asked > 0 ? Math.min(asked, LONGEST_PAUSE_MILLISECONDS) : PAUSE_MILLISECONDS;
}

/**
 * Wait; not at all once the signal is aborted.
 * @param {number} milliseconds
 * @param {AbortSignal} [signal]
 */
export function pause(milliseconds, signal) {
  return new Promise((/** @type {(nothing: void) => void} */ resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    const stop = () => (clearTimeout(timer), resolve());
    if (signal?.aborted) stop();
    signal?.addEventListener("abort", stop, { once: true });
  });
}

/**
 * Send a request again and again, until there is an answer, or an error that would be the same the next time.
 * @template T
 * @param {() => Promise<T>} send
 * @param {{signal?: AbortSignal, onPause?: (error: unknown) => void}} [options] `onPause` is called before each pause
 * @returns {Promise<T>}
 * @throws what `send` throws, and AbortError when `signal` is aborted
 */
export async function untilAnswered(send, { signal, onPause } = {}) {
  for (;;) {
    try {
      return await send();
    } catch (error) {
      signal?.throwIfAborted();
      if (!passes(error)) throw error;
      onPause?.(error);
      await pause(pauseAfter(error), signal);
      signal?.throwIfAborted();
    }
  }
}

/**
 * A question about one subject. The next question replaces it as a whole: once it is ended, its requests are over, and
 * nothing that comes of it is shown. Until then it may be asked anew, as its subject grows: one request at a time.
 * @template S, T
 */
export class Question {
  #end = new AbortController();
  #isAsking = false;
  #isOutdated = false;

  /**
   * @param {S} subject
   * @param {(subject: S, signal: AbortSignal) => Promise<T>} send sends one request about the subject as it is then
   * @param {(answer: T) => void} onAnswer
   * @param {(error: unknown) => void} onError called with each error, also with one after which it is asked again
   */
  constructor(subject, send, onAnswer, onError) {
    this.subject = subject;
    this.send = send;
    this.onAnswer = onAnswer;
    this.onError = onError;
  }

  /** Ask, at once or after the request in flight; once after all calls that come meanwhile. */
  async ask() {
    this.#isOutdated = true;
    if (this.#isAsking) return;
    this.#isAsking = true;
    while (this.#isOutdated && !this.#end.signal.aborted) await this.#askOnce();
    this.#isAsking = false;
  }

  end() {
    this.#end.abort();
  }

  async #askOnce() {
    const { signal } = this.#end;
    const send = () => {
      this.#isOutdated = false;
      return this.send(this.subject, signal);
    };
    try {
      const answer = await untilAnswered(send, { signal, onPause: this.onError });
      if (!signal.aborted) this.onAnswer(answer);
    } catch (error) {
      if (!signal.aborted) this.onError(error);
    }
  }
}
