/** Says in words what an answer means, for a reader who knows no statistics. */

import { isolated, listed } from "./dom.js";
import { counted, percent } from "./format.js";

/**
 * @typedef {"sure" | "unsure" | "unusual" | "unknown"} Kind
 * @typedef {{kind: Kind, word: string, headline: string, confidence: string, sentences: import("./dom.js").Child[][]}} Verdict
 */

const WORDS = { sure: "✓ Sure", unsure: "? Not sure", unusual: "⚠ Unusual image", unknown: "Not calibrated" };

/**
 * @param {any} response of POST /uncertainty
 * @param {any} prediction one of its predictions
 * @returns {Verdict}
 */
export function verdict(response, prediction) {
  const kind = kindOf(prediction);
  return {
    kind,
    word: verdictWord(prediction),
    headline: { sure: prediction.label, unknown: prediction.label, unsure: `Perhaps ${prediction.label}`, unusual: "No answer" }[kind],
    confidence: kind === "unusual" ? "" : `${percent(prediction.confidence)} confident`,
    sentences: [...decision(prediction).map((sentence) => [sentence]), votes(response, prediction), set(response, prediction)].filter((parts) => parts.length > 0),
  };
}

/** @param {any} prediction @returns {Kind} */
export function kindOf(prediction) {
  if (prediction.abstain === null) return "unknown";
  if (!prediction.abstain) return "sure";
  return prediction.abstain_because === "unsure" ? "unsure" : "unusual";
}

/** The word of a verdict. @param {any} prediction */
export const verdictWord = (prediction) => (prediction.abstain_because === "both" ? "⚠ Unusual image, and not sure" : WORDS[kindOf(prediction)]);

/** @param {any} prediction @returns {string[]} */
function decision(prediction) {
  switch (kindOf(prediction)) {
    case "sure":
      return ["Sure enough to use."];
    case "unsure":
      return ["Only a guess, too doubtful to use.", "Have a person look, or send a clearer image."];
    case "unusual":
      return ["It is unlike the images that the model knows: probably none of its classes.", "Check that it is the right image. The network must choose a class all the same, which the bars show; do not use it."];
    default:
      return ["Nobody has measured how often this model is right when it is this confident, so it cannot say when it should not answer."];
  }
}

/** Say what "sure" is measured by; nothing where it was not. @param {any} response @param {any} prediction */
export function limit(response, prediction) {
  if (prediction.abstain === null || kindOf(prediction) === "unusual") return "";
  return `“Sure” has a limit: of all answers that are called so, at most ${percent(response.max_risk)} are wrong. That holds for images like those that the model was checked on, and one such check in twenty promises too much.`;
}

/** @returns {import("./dom.js").Child[]} */
function votes(/** @type {any} */ response, /** @type {any} */ prediction) {
  if (!prediction.votes) {
    return response.method === "analytic" ? ["All variants of the network, each with different parts switched off, were taken into account at once, by a formula."] : [];
  }
  const given = Object.entries(prediction.votes).filter(([, count]) => count > 0).sort(([, one], [, other]) => other - one);
  const total = given.reduce((sum, [, count]) => sum + count, 0);
  const asked = `${counted(total, "variant")} of the network, each with different parts switched off, ${total === 1 ? "was" : "were"} asked`;
  const average = kindOf(prediction) === "unusual" ? [] : [" On average they give ", isolated(prediction.label), ` a probability of ${percent(prediction.confidence)}.`];
  if (given.length === 1) return [`${asked}: ${total === 1 ? "it says" : "all say"} `, isolated(given[0][0]), ".", ...(prediction.abstain ? average : [])];
  const named = given.slice(0, 3).flatMap(([name, count], at) => [`${at > 0 ? ", " : ""}${count} say `, isolated(name)]);
  const rest = given.slice(3).reduce((sum, [, count]) => sum + count, 0);
  return [`${asked}: `, ...named, rest > 0 && `, ${rest} say something else`, ".", ...average];
}

/** @returns {import("./dom.js").Child[]} */
function set(/** @type {any} */ response, /** @type {any} */ prediction) {
  const names = prediction.prediction_set;
  if (!names || names.length < 2 || kindOf(prediction) === "unusual") return [];
  const shown = names.length <= 6 ? names : names.slice(0, 5);
  const more = names.length > shown.length && ` and ${names.length - shown.length} more`;
  return ["It could be any of these: ", ...listed(shown), more, `. A list made like this one holds the truth for ${percent(response.coverage)} of images.`];
}
