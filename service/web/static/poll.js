/** Asks for the same thing again and again, with pauses, and says when nothing comes. */

import { pauseAfter } from "./asking.js";

const PAUSE_MILLISECONDS = 5000;

export class Poll {
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;
  #isPaused = false;
  #isAsking = false;

  /**
   * Ask at once, and go on while the page is visible.
   * @template T
   * @param {() => Promise<T>} ask
   * @param {(answer: T) => void} onAnswer
   * @param {(error: unknown) => void} onError
   */
  constructor(ask, onAnswer, onError) {
    this.ask = ask;
    this.onAnswer = onAnswer;
    this.onError = onError;
    document.addEventListener("visibilitychange", () => this.#again(0));
    this.#again(0);
  }

  get isPaused() {
    return this.#isPaused;
  }

  set isPaused(value) {
    this.#isPaused = value;
    this.#again(0);
  }

  /** @param {number} milliseconds */
  #again(milliseconds) {
    clearTimeout(this.#timer);
    if (!this.#isPaused && !document.hidden) this.#timer = setTimeout(() => this.#step(), milliseconds);
  }

  async #step() {
    if (this.#isAsking) return;
    this.#isAsking = true;
    let pause = PAUSE_MILLISECONDS;
    try {
      const answer = await this.ask();
      if (!this.#isPaused) this.onAnswer(answer);
    } catch (error) {
      pause = pauseAfter(error);
      this.onError(error);
    }
    this.#isAsking = false;
    this.#again(pause);
  }
}
