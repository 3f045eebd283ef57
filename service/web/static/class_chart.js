/** Draws what the thinned networks say of each class: mean, standard error, and a dot a network. */

import { html, svg } from "./dom.js";
import { percent } from "./format.js";
import { kindOf } from "./verdict.js";

const MOST_CLASSES = 12;
const MOST_DOTS = 128;
const HEIGHT = 25;

/** Return the names of an answer's classes: those of the version that has answered, which another may have replaced. @param {any} prediction */
export const classNames = (prediction) => Object.keys(prediction.probabilities);

/**
 * @param {any} prediction
 * @param {boolean} all show every class, however many
 */
export function classChart(prediction, all) {
  const { probabilities } = prediction;
  const names = classNames(prediction);
  const ranked = [...names].sort((one, other) => probabilities[other] - probabilities[one]);
  const shown = names.length <= MOST_CLASSES ? names : all ? ranked : ranked.slice(0, MOST_CLASSES - 2);
  const inSet = new Set(kindOf(prediction) === "unusual" ? [] : (prediction.prediction_set ?? [prediction.label]));
  return html("ul", { class: `classes ${shade(prediction)}`, "aria-label": "Probability of each class" }, ...shown.map((name) => row(prediction, name, inSet.has(name))), axis());
}

/** Whether `classChart` leaves classes out. @param {any} prediction */
export const isLong = (prediction) => classNames(prediction).length > MOST_CLASSES;

/** Return the class that takes the colour from an answer which is not to be used. @param {any} prediction */
const shade = (prediction) => (kindOf(prediction) === "unusual" ? "void" : "");

/** Explain the marks of the chart. @param {any} prediction */
export function legend(prediction) {
  const item = (/** @type {any[]} */ marks, /** @type {string} */ text) => html("span", {}, svg("svg", { class: "strip", "aria-hidden": "true" }, ...marks), ` ${text}`);
  const bold = kindOf(prediction) !== "unusual" && (prediction.prediction_set?.length ?? 0) > 1;
  return html(
    "p",
    { class: `legend muted small ${shade(prediction)}` },
    prediction.sample_probabilities && item([4, 13, 22].map((x) => svg("circle", { class: "sample", cx: x, cy: 6, r: 3 })), "what each variant says"),
    item([svg("rect", { class: "mean", width: 26, height: 12 })], "their average"),
    hasErrors(prediction) && item([svg("line", { class: "error", x1: 0, x2: 26, y1: 6, y2: 6 })], "how exact the average is (standard error)"),
    bold && html("span", {}, html("strong", {}, "Bold"), ": not ruled out"),
  );
}

function axis() {
  const labels = [0, 0.5, 1].map((share) => svg("text", { x: at(share), y: 11, "text-anchor": share === 0 ? "start" : share === 1 ? "end" : "middle" }, `${100 * share} %`));
  return html("li", { "aria-hidden": "true" }, html("span"), svg("svg", { class: "axis" }, ...labels), html("span"));
}

function row(/** @type {any} */ prediction, /** @type {string} */ name, /** @type {boolean} */ inSet) {
  const mean = prediction.probabilities[name];
  const error = hasErrors(prediction) ? prediction.standard_error[name] : null;
  const samples = prediction.sample_probabilities?.[name] ?? [];
  const said = [error !== null && `standard error ${percent(error)}`, prediction.votes && `${prediction.votes[name]} of ${samples.length} variants choose it`].filter(Boolean).join("; ");
  const strip = svg(
    "svg",
    { class: "strip", ...(said ? { role: "img", "aria-label": said } : { "aria-hidden": "true" }) },
    svg("rect", { class: "track", width: "100%", height: HEIGHT - 6, y: 3, rx: 4 }),
    svg("rect", { class: "mean", width: at(mean), height: HEIGHT - 6, y: 3, rx: 4 }),
    ...thin(samples).map((share, place) => svg("circle", { class: "sample", cx: at(share), cy: 5.5 + ((place * 7) % 13) * ((HEIGHT - 11) / 12), r: 2.4 })),
    error !== null && svg("line", { class: "error", x1: at(Math.max(0, mean - error)), x2: at(Math.min(1, mean + error)), y1: HEIGHT / 2, y2: HEIGHT / 2 }),
  );
  return html("li", { class: inSet ? "in-set" : null }, html("span", { class: "class-name", title: name }, name), strip, html("span", { class: "class-share" }, percent(mean)));
}

/** Whether the means have errors; of a formula or a single sample they have none. @param {any} prediction */
const hasErrors = (prediction) => Object.values(prediction.standard_error ?? {}).some((error) => error !== null);

const at = (/** @type {number} */ share) => `${(100 * share).toFixed(3)}%`;

/** Leave out samples at equal distances, so that many stay quick to draw. @param {number[]} samples */
function thin(samples) {
  const step = Math.ceil(samples.length / MOST_DOTS);
  return samples.filter((_, place) => place % step === 0);
}
