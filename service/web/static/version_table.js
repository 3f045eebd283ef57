/** The table of all versions in service: a row for each, with its key figures. */

import { html } from "./dom.js";
import { FIGURES, inputText, write } from "./version_figures.js";
import { counted, percent } from "./format.js";

/** @typedef {import("./version_figures.js").Entry} Entry */

/** Return the key of a version, which is also the address of its details. @param {Entry} entry */
export const keyOf = ({ name, version }) => `${name}/${version.version}`;

/**
 * Build the rows.
 * @param {Entry[]} entries
 * @param {string | null} defaultModel
 * @param {string} selected key of the version whose details are shown
 */
export function versionRows(entries, defaultModel, selected) {
  return entries.map((entry) => {
    const { name, model, version } = entry;
    const key = keyOf(entry);
    const cells = ["accuracy", "nll", "ece", "aurc", "answered", "parameters"].map((figure) => cell(FIGURES[figure].label, write(FIGURES[figure], version), "number"));
    return html(
      "tr",
      { class: key === selected ? "selected" : null },
      html("th", { scope: "row" }, html("a", { href: `#${key}`, "data-key": key, "aria-current": key === selected ? "true" : null }, html("span", { class: "model-name" }, name), " ", html("span", { class: "nowrap" }, `version ${version.version}`))),
      cell("Requests", html("span", { class: "row badges" }, ...badges(model, version, name === defaultModel)), ""),
      ...cells,
      cell("Input", inputText(version.input), ""),
      cell("Made", write(FIGURES.made, version).slice(0, 10), "made"),
    );
  });
}

/** @param {any} model @param {any} version @param {boolean} isDefault */
function badges(model, version, isDefault) {
  const isStable = version.role === "stable";
  return [
    html("span", { class: `badge ${version.role}` }, `${isStable ? "stable" : "canary"}, ${percent(version.share)}`),
    isStable && model.shadow && shadowBadge(model.shadow),
    isStable && isDefault && html("span", { class: "badge", title: "answers requests that name no model" }, "default"),
    isStable && model.held && html("span", { class: "badge", title: "serves even if higher versions appear" }, "pinned"),
  ];
}

/** Say how far the answers of a shadow version differ. @param {any} shadow */
function shadowBadge({ version, state, reason, images, labels_differ: others }) {
  const found = images.compared === 0 ? "no image compared yet" : `${percent(others / images.compared)} of ${counted(images.compared, "image")} with another label`;
  const text = state === "comparing" ? found : state;
  return html("span", { class: "badge", title: reason ?? "answers no client; its answers are compared with those of this version" }, `shadow ${version}: ${text}`);
}

/** @param {string} label shown on narrow screens @param {string | Node} content @param {string} kind */
const cell = (label, content, kind) => html("td", { class: kind || null, "data-label": label }, content);
