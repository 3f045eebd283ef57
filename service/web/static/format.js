/** Writes numbers as a reader expects them. */

/** Write a share of 0..1 as per cent, with more digits close to 0 and 1, never broken across lines. @param {number} share */
export function percent(share) {
  const value = 100 * share;
  if (value === 0 || value === 100) return `${value}\u00a0%`;
  if (value > 99.9) return ">\u00a099.9\u00a0%";
  if (value < 0.1) return "<\u00a00.1\u00a0%";
  return `${Number(value.toFixed(value < 10 || value > 99 ? 1 : 0))}\u00a0%`;
}

/** Write a number with three significant digits. @param {number | null} value */
export function short(value) {
  if (value === null || value === undefined) return "–";
  if (value !== 0 && Math.abs(value) < 0.001) return "< 0.001";
  return Number(value.toPrecision(3)).toString();
}

/** Write a count with its noun, as in "1 image", "3 images". @param {number} count @param {string} noun */
export const counted = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;
