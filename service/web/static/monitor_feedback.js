/** What the true labels say of one version: shares with their intervals, and the tests of its promises. */

import { html, scrolling } from "./dom.js";
import { percent } from "./format.js";

const SHARES = [
  ["accuracy", "Accuracy", "labels of the answers that are the true ones"],
  ["coverage", "Coverage", "prediction sets that hold the true class"],
  ["answered", "Answered", "answers that do not abstain"],
  ["error_among_answered", "Error among the answered", "wrong ones of these"],
  ["overconfidence", "Overconfidence", "mean confidence minus accuracy"],
];

/** Return the section of a version; null: the service takes no true labels. @param {any} feedback */
export function feedbackSection(feedback) {
  if (!feedback) return null;
  const title = html("h3", {}, "True labels");
  if (feedback.labels === 0) return html("div", { class: "stack" }, title, html("p", { class: "muted small" }, "No true label has come yet (POST /feedback)."));
  return html("div", { class: "stack" }, title,
    table("What true labels say", ["", "Share", "95 % interval", ""], SHARES.filter(([name]) => feedback[name]).map(([name, text, meaning]) => shareRow(text, feedback[name], meaning))),
    table("Tests of the promises", ["Promise", "Labels", "Broken share", "Alarm"], feedback.tests.map(testRow)),
    html("p", { class: "muted small" }, `${feedback.labels.toLocaleString("en")} labels, which say this of all answers only if they are a fair sample of them. While its promises are kept, a version has an alarm with at most ${percent(feedback.alarm_rate)} probability.`));
}

/** Return a notice for each broken promise. @param {any} version */
export function feedbackAlarms({ model, version, feedback }) {
  if (!feedback) return [];
  return feedback.tests.filter((/** @type {any} */ test) => test.alarm).map((/** @type {any} */ test) =>
    html("p", { class: "notice" }, html("strong", {}, `Broken promise: ${model} ${version}. `),
      `By ${test.labels.toLocaleString("en")} true labels, ${promise(test)} is not kept. Check images and labels; train a version with them.`));
}

/** Write a share that may be negative. @param {number} value */
const points = (value) => `${(100 * value).toFixed(1)}\u00a0%`;

/** @param {any} test */
const promise = (test) => (test.promise === "coverage" ? `coverage ${test.coverage} (${test.sets})` : "max_risk");

/** @param {string} text @param {any} share @param {string} meaning */
function shareRow(text, share, meaning) {
  return html("tr", {}, html("th", { scope: "row" }, text), html("td", { class: "number" }, points(share.estimate)),
    html("td", { class: "number" }, `${points(share.low)} to ${points(share.high)}`), html("td", { class: "muted small" }, meaning));
}

/** @param {any} test */
function testRow(test) {
  const { labels, missed_share: share, alarm } = test;
  const state = alarm ? `alarm since label ${alarm.label.toLocaleString("en")}` : "no alarm";
  return html("tr", {}, html("th", { scope: "row" }, promise(test)), html("td", { class: "number" }, labels.toLocaleString("en")),
    html("td", { class: "number" }, share ? percent(share.estimate) : "–"), html("td", { class: alarm ? "alarm" : null }, state));
}

/** @param {string} label @param {string[]} head @param {any[]} rows */
function table(label, head, rows) {
  const cells = head.map((text, at) => html("th", { scope: "col", class: at === 1 || at === 2 ? "number" : null }, text));
  return scrolling(label, html("table", {}, html("thead", {}, html("tr", {}, ...cells)), html("tbody", {}, ...rows)));
}
