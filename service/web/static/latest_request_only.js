/** Runs one request at a time, and after it only the newest of those that were asked for meanwhile. */

/**
 * @template T
 * @param {(job: T) => Promise<void>} run
 * @returns {(job: T) => void}
 */
export function latestOnly(run) {
  let busy = false;
  /** @type {{job: T} | null} */
  let next = null;
  async function start(/** @type {T} */ job) {
    busy = true;
    try {
      await run(job);
    } finally {
      busy = false;
      if (next) {
        const { job: newest } = next;
        next = null;
        void start(newest);
      }
    }
  }
  return (job) => {
    if (busy) next = { job };
    else void start(job);
  };
}
