/** The details of one version, or of two side by side: figures, mistakes, layers, examples, report. */

import { address } from "./api.js";
import { MOST_CLASSES_DRAWN, confusionChart, confusionMatrix, mistakeList, worstClasses } from "./confusion.js";
import { html, scrolling } from "./dom.js";
import { FIGURES, difference, share, write } from "./version_figures.js";
import { serviceImage, serviceLink } from "./files_fetched_with_key.js";

/** @typedef {import("./version_figures.js").Entry} Entry */

const MOST_OPTIONS = 40;

export const titleOf = (/** @type {Entry} */ { name, version }) => `${name} version ${version.version}`;

/**
 * Build the details of one version, or of two.
 * @param {{entry: Entry, manifest: any}} first
 * @param {{entry: Entry, manifest: any} | null} second
 */
export function versionDetails(first, second) {
  if (!second) {
    const { entry, manifest } = first;
    return [html("div", { class: "beside" }, figuresPanel(entry, null, true), html("div", { class: "stack" }, mistakesPanel(entry, manifest, false), examplesPanel(entry), layersPanel(entry, manifest, false)))];
  }
  const each = (/** @type {typeof mistakesPanel} */ panel) => html("div", { class: "beside" }, ...[first, second].map(({ entry, manifest }) => panel(entry, manifest, true)));
  return [figuresPanel(first.entry, second.entry, areMeasuredAlike(first, second)), optionsPanel(first, second), each(mistakesPanel), each(layersPanel)];
}

/**
 * Return whether the test images of two versions are of the same data set, and as many.
 * @param {{entry: Entry, manifest: any}} first @param {{entry: Entry, manifest: any}} second
 */
function areMeasuredAlike(first, second) {
  const [one, other] = [first, second].map(({ entry, manifest }) => JSON.stringify([manifest.data.sha256, entry.version.test.images]));
  return one === other;
}

/** @param {Entry} first @param {Entry | null} second @param {boolean} isComparable */
function figuresPanel(first, second, isComparable) {
  const head = second && html("thead", {}, html("tr", {}, html("td", {}), html("th", { scope: "col", class: "number" }, titleOf(first)), html("th", { scope: "col", class: "number" }, titleOf(second)), html("th", { scope: "col", class: "number" }, "Difference")));
  const rows = Object.values(FIGURES).map((figure) => {
    const change = second && difference(figure, first.version, second.version, isComparable);
    return html(
      "tr",
      {},
      html("th", { scope: "row" }, figure.label),
      html("td", { class: "number" }, write(figure, first.version)),
      second && html("td", { class: "number" }, write(figure, second.version)),
      change && html("td", { class: `number change ${change.kind}` }, change.text, ["better", "worse"].includes(change.kind) && html("span", { class: "change-word" }, ` ${change.kind}`)),
    );
  });
  return html("section", { class: "panel" }, html("h3", {}, second ? "Side by side" : "Figures"), !second && html("p", { class: "summary" }, summary(first.version)), !isComparable && html("p", { class: "summary" }, "They were measured on different images, so no figure says which is better."), scrolling("Figures in a table", html("table", { class: second ? "figures two" : "figures" }, head, html("tbody", {}, ...rows))), reportLinks(second ? [first, second] : [first]));
}

/** Say in a sentence what a version is worth. @param {any} version */
function summary({ test, calibration_images: calibration }) {
  if (test.accuracy === null) return "Nothing was measured on test images.";
  const right = `Right on ${share(test.accuracy)} of ${test.images === null ? "the" : test.images.toLocaleString("en")} test images.`;
  if (calibration === null) return `${right} It is not calibrated, so it never abstains.`;
  if (test.answered === null) return right;
  if (test.answered === 0) return `${right} At its own limits it abstains from all of them.`;
  const answers = test.answered === 1 ? "It answers all of them" : `At its own limits it answers ${share(test.answered)} of them`;
  if (test.error === null || test.answered === 1) return `${right} ${answers}.`;
  return `${right} ${answers}, and ${test.error === 0 ? "none" : share(test.error)} of these answers ${test.error === 0 ? "is" : "are"} wrong.`;
}

/** @param {Entry[]} entries */
function reportLinks(entries) {
  const links = entries.map((entry) => {
    const { name, version } = entry;
    const where = entries.length > 1 ? ` of ${titleOf(entry)}` : "";
    if (!version.has_report) return html("span", { class: "muted" }, `No report${where}`);
    const report = address(`models/${encodeURIComponent(name)}/report`, { version: version.version });
    return serviceLink(report, `${name}-${version.version}-report.html`, `The report${where}`);
  });
  return html("p", { class: "row links" }, ...links);
}

/** @param {Entry} entry */
function examplesPanel({ name, version }) {
  const numbers = [...Array(version.examples).keys()];
  const images = numbers.map((number) => serviceImage(address(`models/${encodeURIComponent(name)}/examples/${number}`, { version: version.version }), { alt: `Validation image ${number + 1} of ${version.examples}`, loading: "lazy", class: version.input.height <= 64 ? "pixelated" : null }));
  const text = images.length > 0 ? "From the one that it is surest of to the least sure one." : "The bundle carries none.";
  return html("section", { class: "panel" }, html("h3", {}, "Validation images"), html("p", { class: "muted small" }, text), html("div", { class: "thumbnails" }, ...images));
}

/** @param {Entry} entry @param {any} manifest @param {boolean} isTitled */
function mistakesPanel(entry, manifest, isTitled) {
  const matrix = confusionMatrix(manifest);
  const names = manifest.class_names;
  const title = html("h3", {}, `What it takes for what${isTitled ? `: ${titleOf(entry)}` : ""}`);
  if (!matrix) return html("section", { class: "panel" }, title, html("p", { class: "muted" }, "It was not measured."));
  const chart = names.length <= MOST_CLASSES_DRAWN ? html("div", { class: "chart" }, confusionChart(matrix, names)) : worstClasses(matrix, names);
  return html("section", { class: "panel" }, title, html("div", { class: "mistakes-columns" }, chart, html("div", {}, html("h4", {}, "The commonest mistakes"), mistakeList(matrix, names))));
}

/** @param {Entry} entry @param {any} manifest @param {boolean} isTitled */
function layersPanel(entry, manifest, isTitled) {
  const diagnosis = manifest.metrics?.diagnosis;
  const layers = Array.isArray(diagnosis?.layers) ? diagnosis.layers : [];
  const title = html("h3", {}, `Hidden layers${isTitled ? `: ${titleOf(entry)}` : ""}`);
  if (layers.length === 0) {
    const why = entry.version.preset === "adopted" ? "The network was trained elsewhere, so its units were not observed." : "Its units were not observed.";
    return html("section", { class: "panel" }, title, html("p", { class: "muted" }, why));
  }
  const count = (/** @type {any} */ value) => html("td", { class: "number" }, Number.isFinite(value) ? value.toLocaleString("en") : "–");
  const head = ["Units", "Dead", "Nearly dead", "Always on"].map((label) => html("th", { scope: "col", class: "number" }, label));
  const rows = layers.map((/** @type {any} */ layer) => html("tr", { class: layer.dead > 0 ? "has-dead" : null }, html("th", { scope: "row" }, String(layer.name)), ...[layer.units, layer.dead, layer.nearly_dead, layer.always_on].map(count)));
  const advice = Array.isArray(diagnosis.advice) ? diagnosis.advice.map((/** @type {any} */ sentence) => html("li", {}, String(sentence))) : [];
  return html("section", { class: "panel" }, title, scrolling(`Layers of ${titleOf(entry)}`, html("table", {}, html("thead", {}, html("tr", {}, html("th", { scope: "col" }, "Layer"), ...head)), html("tbody", {}, ...rows))), advice.length > 0 && html("ul", { class: "advice" }, ...advice));
}

/**
 * Build a table of the training options in which two versions differ.
 * @param {{entry: Entry, manifest: any}} first @param {{entry: Entry, manifest: any}} second
 */
function optionsPanel(first, second) {
  const [before, after] = [options(first.manifest), options(second.manifest)];
  const names = [...new Set([...Object.keys(before), ...Object.keys(after)])].filter((name) => before[name] !== after[name]);
  const rows = names.slice(0, MOST_OPTIONS).map((name) => html("tr", {}, html("th", { scope: "row" }, name.replaceAll("_", " ")), ...[before, after].map((each) => html("td", { class: "option" }, each[name] ?? "–"))));
  const table = html("table", {}, html("thead", {}, html("tr", {}, html("td", {}), html("th", { scope: "col" }, titleOf(first.entry)), html("th", { scope: "col" }, titleOf(second.entry)))), html("tbody", {}, ...rows));
  const content = names.length > 0 ? scrolling("Options in a table", table) : html("p", { class: "muted" }, "Both were trained with the same options on the same images.");
  return html("section", { class: "panel" }, html("h3", {}, "How they were made differently"), content);
}

/** @param {any} manifest @returns {Record<string, string>} */
function options({ training, data, libraries }) {
  const all = { ...training, "data set": data.name, "digest of the images": String(data.sha256 ?? "").slice(0, 12) || null, ...libraries };
  return Object.fromEntries(Object.entries(all).filter(([, value]) => value !== null && value !== undefined).map(([name, value]) => [name, typeof value === "string" ? value : JSON.stringify(value)]));
}

