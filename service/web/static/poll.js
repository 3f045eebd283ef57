/** Asks for the same thing again and again, with pauses, and says when nothing comes. */

const PAUSE = 5000;
const PAUSE_AFTER_ERROR = 2000;
const TIMEOUT = 10000;

export class Poll {
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;
  #isPaused = false;
  #isAsking = false;

  /**
   * Ask at once, and go on while the page is visible.
   * @template T
   * @param {(signal: AbortSignal) => Promise<T>} ask
   * @param {(answer: T) => void} onAnswer
   * @param {(error: Error) => void} onError
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
    let pause = PAUSE;
    try {
      const answer = await this.ask(AbortSignal.timeout(TIMEOUT));
      if (!this.#isPaused) this.onAnswer(answer);
    } catch (error) {
      pause = PAUSE_AFTER_ERROR;
      this.onError(/** @type {Error} */ (error));
    }
    this.#isAsking = false;
    this.#again(pause);
  }
}
