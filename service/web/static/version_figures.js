/** The figures of a version: what each is called, where `GET /models` has it, and how it is written. */

import { counted, percent, short } from "./format.js";

/**
 * @typedef {{name: string, model: any, version: any}} Entry a version in service, and its model
 * @typedef {{
 *   label: string,
 *   value: (version: any) => number | string | null,
 *   write?: (value: any) => string,
 *   better?: "higher" | "lower",
 * }} Figure
 */

const MISSING = "–";

const whole = (/** @type {number} */ value) => value.toLocaleString("en");

/** Write a share with one decimal, which never makes it all or none, on one line. @param {number} value */
export function share(value) {
  const rounded = (100 * value).toFixed(1);
  return rounded === "0.0" || rounded === "100.0" ? percent(value) : `${rounded}\u00a0%`;
}

/** Write a loss or an error with enough digits to tell two versions apart. @param {number} value */
function precise(value) {
  if (value === 0) return "0";
  if (Math.abs(value) < 1e-5) return "< 0.00001";
  return Math.abs(value) < 0.001 ? value.toFixed(5) : value.toFixed(4);
}

/** Write what a model takes, as in "28 × 28, grey". @param {any} input */
export const inputText = ({ height, width, channels }) => `${height} × ${width}, ${channels === 1 ? "grey" : "colour"}`;

/** @type {Record<string, Figure>} */
export const FIGURES = {
  accuracy: { label: "Right", value: ({ test }) => test.accuracy, write: share, better: "higher" },
  images: { label: "Test images", value: ({ test }) => test.images, write: whole },
  nll: { label: "NLL", value: ({ test }) => test.nll, write: precise, better: "lower" },
  ece: { label: "ECE", value: ({ test }) => test.ece, write: precise, better: "lower" },
  aurc: { label: "AURC", value: ({ test }) => test.aurc, write: precise, better: "lower" },
  answered: { label: "Answered", value: ({ test }) => test.answered, write: share, better: "higher" },
  error: { label: "Wrong of the answered", value: ({ test }) => test.error, write: share, better: "lower" },
  risk: { label: "Wrong at most, by its limit", value: ({ test }) => test.max_risk, write: share },
  calibration: { label: "Calibrated on", value: ({ calibration_images }) => calibration_images, write: (value) => counted(value, "image") },
  dead: { label: "Dead units", value: ({ dead_units }) => dead_units, write: whole, better: "lower" },
  hidden: { label: "Hidden units", value: ({ hidden_units }) => hidden_units, write: whole },
  network: { label: "Network", value: ({ preset }) => preset },
  parameters: { label: "Parameters", value: ({ parameters }) => parameters, write: whole },
  dropout: { label: "Dropout", value: ({ dropout }) => dropout.map(short).join(", ") },
  precision: { label: "Precision", value: ({ precision }) => precision },
  classes: { label: "Classes", value: ({ classes }) => classes, write: whole },
  input: { label: "Input", value: ({ input }) => inputText(input) },
  made: { label: "Made (UTC)", value: ({ published }) => published, write: dateText },
};

/** Write a figure of a version. @param {Figure} figure @param {any} version */
export function write(figure, version) {
  const value = figure.value(version);
  if (value === null || value === undefined) return MISSING;
  return figure.write ? figure.write(value) : String(value);
}

/**
 * Return the difference of a figure from one version to another, and whether it is for the better.
 * @param {Figure} figure @param {any} from @param {any} to
 * @param {boolean} isComparable whether both were measured on the same images
 * @returns {{text: string, kind: "better" | "worse" | "same" | "other"}}
 */
export function difference(figure, from, to, isComparable) {
  const [before, after] = [figure.value(from), figure.value(to)];
  if (before === null || after === null) return { text: MISSING, kind: "other" };
  if (before === after) return { text: "the same", kind: "same" };
  if (typeof before !== "number" || typeof after !== "number") return { text: "differs", kind: "other" };
  const change = after - before;
  const size = Math.abs(change);
  const isShare = figure.write === share;
  const text = `${change < 0 ? "−" : "+"}${isShare ? `${short(100 * size)} points` : Number.isInteger(change) ? whole(size) : short(size)}`;
  if (!figure.better || !isComparable) return { text, kind: "other" };
  return { text, kind: change > 0 === (figure.better === "higher") ? "better" : "worse" };
}

/** @param {string} time */
function dateText(time) {
  const date = new Date(time);
  return Number.isNaN(date.getTime()) ? MISSING : date.toISOString().slice(0, 16).replace("T", " ");
}
