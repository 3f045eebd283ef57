/** Says in words what an answer means, for a reader who knows no statistics. */

import { counted, percent } from "./format.js";

/**
 * @typedef {"sure" | "unsure" | "unusual" | "unknown"} Kind
 * @typedef {{kind: Kind, word: string, headline: string, confidence: string, sentences: string[]}} Verdict
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
    word: prediction.abstain_because === "both" ? "⚠ Unusual image, and not sure" : WORDS[kind],
    headline: { sure: prediction.label, unknown: prediction.label, unsure: `Perhaps ${prediction.label}`, unusual: "No answer" }[kind],
    confidence: kind === "unusual" ? "" : `${percent(prediction.confidence)} confident`,
    sentences: [...decision(prediction), votes(response, prediction), set(response, prediction)].filter((each) => each !== ""),
  };
}

/** @param {any} prediction @returns {Kind} */
export function kindOf(prediction) {
  if (prediction.abstain === null) return "unknown";
  if (!prediction.abstain) return "sure";
  return prediction.abstain_because === "unsure" ? "unsure" : "unusual";
}

/** The word of a verdict, for a list. @param {any} prediction */
export const verdictWord = (prediction) => WORDS[kindOf(prediction)];

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
  return `“Sure” has a limit: of all answers that are called so, at most ${percent(response.max_risk)} are wrong.`;
}

function votes(/** @type {any} */ response, /** @type {any} */ prediction) {
  if (!prediction.votes) {
    return response.method === "analytic" ? "All variants of the network, each with different parts switched off, were taken into account at once, by a formula." : "";
  }
  const given = Object.entries(prediction.votes).filter(([, count]) => count > 0).sort(([, one], [, other]) => other - one);
  const total = given.reduce((sum, [, count]) => sum + count, 0);
  const asked = `${counted(total, "variant")} of the network, each with different parts switched off, ${total === 1 ? "was" : "were"} asked`;
  const average = kindOf(prediction) === "unusual" ? "" : ` On average they give ${prediction.label} a probability of ${percent(prediction.confidence)}.`;
  if (given.length === 1) return `${asked}: ${total === 1 ? "it says" : "all say"} ${given[0][0]}.${prediction.abstain ? average : ""}`;
  const named = given.slice(0, 3).map(([name, count]) => `${count} say ${name}`);
  const rest = given.slice(3).reduce((sum, [, count]) => sum + count, 0);
  if (rest > 0) named.push(`${rest} say something else`);
  return `${asked}: ${named.join(", ")}.${average}`;
}

function set(/** @type {any} */ response, /** @type {any} */ prediction) {
  const names = prediction.prediction_set;
  if (!names || names.length < 2 || kindOf(prediction) === "unusual") return "";
  const shown = names.length <= 6 ? names.join(", ") : `${names.slice(0, 5).join(", ")} and ${names.length - 5} more`;
  return `It could be any of these: ${shown}. A list made like this one holds the truth for ${percent(response.coverage)} of images.`;
}
