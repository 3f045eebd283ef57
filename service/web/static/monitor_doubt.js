/** How unsure the answers of one version are: histograms, abstentions and the drift tests. */

import { byId, html, renew, scrolling, svg } from "./dom.js";
import { percent, short } from "./format.js";
import { Histogram } from "./histogram.js";
import { LineChart } from "./line_chart.js";
import { feedbackSection } from "./monitor_feedback.js";

const PARTS = [
  { name: "predictive_entropy", title: "Entropy", unit: "nats", note: "How unsure the answers are in all." },
  { name: "mutual_information", title: "Mutual information", unit: "nats", note: "How much the thinned networks disagree." },
  { name: "typicality", title: "Typicality", unit: "0 to 1", note: "Level, where images are like the validation images. Left of the mark they are unusual.", mark: 0.01 },
  { name: "set_size", title: "Set size", unit: "classes", note: "How many classes the prediction sets hold.", isWhole: true },
];
const histograms = PARTS.map((part) => {
  const place = html("div");
  byId("histograms").append(place);
  return new Histogram(place, part);
});
const abstention = new LineChart(byId("abstention-chart"), { title: "Abstained", unit: "of the images of each half minute", format: share, least: 0.1, isArea: true });
const SMOOTH = 6;
const MOMENT = /** @type {Intl.DateTimeFormatOptions} */ ({ dateStyle: "medium", timeStyle: "short" });
const NUMBER = new Intl.NumberFormat("en", { maximumSignificantDigits: 3, notation: "compact" });

/** Show the version that is chosen. @param {any} recent GET /metrics/recent @param {number} window */
export function showDoubt(recent, window) {
  const version = chosenVersion(recent);
  byId("doubt").hidden = !version;
  renew(byId("drift"), version && version.drift.alarm !== null && driftTable(version.drift));
  renew(byId("feedback"), feedbackSection(version?.feedback));
  if (!version) {
    byId("doubt-note").replaceChildren("No model is in service.");
    return;
  }
  const { images, abstentions, histograms: counts } = version.windows[window];
  byId("doubt").hidden = images === 0;
  byId("doubt-note").replaceChildren(note(version, images, recent.windows_seconds[window] / 60));
  PARTS.forEach(({ name }, at) => histograms[at].update(version.edges[name], counts[name], version.reference[name]));
  const count = recent.windows_seconds[window] / recent.interval_seconds;
  abstention.update([{ name: "abstained", values: shares(version).slice(-count) }], recent.interval_seconds);
  showReasons(abstentions, images);
}

/** Return the tiles of a window, of all versions. @param {any} recent @param {number} window */
export function doubtTiles(recent, window) {
  const windows = recent.versions.map((/** @type {any} */ each) => each.windows[window]);
  const images = windows.reduce((/** @type {number} */ sum, /** @type {any} */ each) => sum + each.images, 0);
  const abstained = windows.reduce((/** @type {number} */ sum, /** @type {any} */ { abstentions }) => sum + abstentions.unsure + abstentions.unusual + abstentions.both, 0);
  return [["Abstained", images ? percent(abstained / images) : "–", `of ${images.toLocaleString("en")} answers of /uncertainty`, false]];
}

/** @param {any} recent */
function chosenVersion(recent) {
  const select = byId("version");
  const names = recent.versions.map((/** @type {any} */ each) => `${each.model} ${each.version}`);
  if ([...select.options].map((each) => each.value).join("\n") !== names.join("\n")) {
    const images = (/** @type {any} */ each) => each.windows[each.windows.length - 1].images;
    const busiest = recent.versions.reduce((/** @type {any} */ best, /** @type {any} */ each) => (best && images(best) >= images(each) ? best : each), null);
    const chosen = names.includes(select.value) ? select.value : busiest && `${busiest.model} ${busiest.version}`;
    select.replaceChildren(...recent.versions.map((/** @type {any} */ each) => html("option", { value: `${each.model} ${each.version}` }, `${each.model}, version ${each.version}${each.role === "canary" ? " (canary)" : ""}`)));
    select.value = chosen;
  }
  return recent.versions[names.indexOf(select.value)];
}

/** @param {any} version @param {number} images @param {number} minutes */
function note(version, images, minutes) {
  if (images === 0) return `Nobody has asked ${version.model} ${version.version} how sure it is (POST /uncertainty) in the last ${minutes === 1 ? "minute" : `${minutes} minutes`}.`;
  const hasReference = version.reference.predictive_entropy !== null;
  const lacking = hasReference ? "" : " The bundle was exported before it recorded entropy, mutual information and set sizes of its validation images; train it anew to compare them.";
  const uncalibrated = version.reference.typicality === null ? " It is uncalibrated: it has no typicality, no sets and does not abstain." : "";
  return `Answers of POST /uncertainty. Where bars leave the dashed line, images or answers are not as at the validation.${lacking}${uncalibrated}`;
}

/** Return the share of images that abstained in the half minute up to each interval. @param {any} version */
function shares({ images, abstained }) {
  return images.map((/** @type {number} */ _, /** @type {number} */ at) => {
    const total = (/** @type {number[]} */ values) => values.slice(Math.max(0, at - SMOOTH + 1), at + 1).reduce((sum, value) => sum + value, 0);
    return total(images) ? total(abstained) / total(images) : null;
  });
}

/** @param {number | null} value */
function share(value) {
  return value === null ? "–" : `${Number((100 * value).toPrecision(2))}%`;
}

/** @param {Record<string, number>} abstentions @param {number} images */
function showReasons(abstentions, images) {
  const total = Object.values(abstentions).reduce((sum, count) => sum + count, 0);
  const rows = Object.entries(abstentions).map(([reason, count]) =>
    html("div", { class: "reason-row" }, reason,
      svg("svg", { "aria-hidden": "true", viewBox: "0 0 100 14", preserveAspectRatio: "none" },
        svg("rect", { class: "reason-track", width: 100, height: 14 }),
        svg("rect", { class: `reason-${reason}`, width: total ? (100 * count) / total : 0, height: 14 })),
      html("span", { class: "number" }, `${count.toLocaleString("en")} (${images ? percent(count / images) : "–"})`)));
  byId("reasons").replaceChildren(html("h3", {}, "Why it abstained"), ...rows,
    html("p", { class: "muted small" }, "unsure: the confidence is too low; unusual: the image is unlike the validation images; both. In brackets the share of all images."));
}

/** @param {any} drift */
function driftTable(drift) {
  const limit = 2 / drift.level;
  const rows = ["typicality", "confidence"].map((figure) => {
    const { alarm, log_wealth, images, raised } = drift[figure];
    const state = alarm ? `since ${new Date(raised.time).toLocaleString(undefined, MOMENT)}, image ${raised.image.toLocaleString("en")}` : "no alarm";
    return html("tr", {}, html("th", { scope: "row" }, figure), html("td", { class: "number" }, images.toLocaleString("en")),
      html("td", { class: "number" }, wealth(log_wealth)), html("td", { class: alarm ? "alarm" : null }, alarm ? `alarm ${state}` : state));
  });
  const head = ["", "Images tested", "Wealth", "Drift alarm"].map((text, at) => html("th", { scope: "col", class: at === 1 || at === 2 ? "number" : null }, text));
  return html("div", { class: "stack" }, html("h3", {}, "Drift"),
    scrolling("Drift tests", html("table", {}, html("thead", {}, html("tr", {}, ...head)), html("tbody", {}, ...rows))),
    html("p", { class: "muted small" }, `The test bets against "the images are like the validation images" at fair odds, and begins with 1: the more it has won, the less likely that is. At ${short(limit)} it raises the alarm, which stays until a reset.`));
}

/** @param {number} log */
const wealth = (log) => (log > 34 ? `10^${Math.round(log / Math.LN10)}` : NUMBER.format(Math.exp(log)));
