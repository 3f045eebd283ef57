/** What a version takes for what: the confusion matrix as SVG, the commonest mistakes, the worst classes. */

import { html, isolated, scrolling, svg } from "./dom.js";
import { counted, percent } from "./format.js";

/** @typedef {{truth: number, label: number, count: number, images: number}} Mistake */

export const MOST_CLASSES_DRAWN = 20;
const MOST_MISTAKES = 8;
const MOST_WORST = 10;
const CELL = 30;

/**
 * Return the matrix of a manifest, counts by true class (row) and label (column), if it is one.
 * @param {any} manifest
 * @returns {number[][] | null}
 */
export function confusionMatrix(manifest) {
  const matrix = manifest.metrics?.test?.confusion_matrix;
  const classes = manifest.class_names.length;
  const isCounts = (/** @type {any} */ row) => Array.isArray(row) && row.length === classes && row.every((count) => Number.isFinite(count) && count >= 0);
  return Array.isArray(matrix) && matrix.length === classes && matrix.every(isCounts) ? matrix : null;
}

const total = (/** @type {number[]} */ row) => row.reduce((sum, count) => sum + count, 0);

/** Return the pairs of classes that are confused most often. @param {number[][]} matrix @returns {Mistake[]} */
export function mistakes(matrix) {
  return matrix
    .flatMap((row, truth) => row.map((count, label) => ({ truth, label, count, images: total(row) })))
    .filter(({ truth, label, count }) => truth !== label && count > 0)
    .sort((one, other) => other.count - one.count || other.count / other.images - one.count / one.images);
}

/** Build the list of the commonest mistakes. @param {number[][]} matrix @param {string[]} names */
export function mistakeList(matrix, names) {
  const found = mistakes(matrix);
  if (found.length === 0) return html("p", {}, "None of the test images got a wrong label.");
  const items = found.slice(0, MOST_MISTAKES).map(({ truth, label, count, images }) => html("li", {}, html("strong", {}, isolated(names[truth])), " taken for ", html("strong", {}, isolated(names[label])), html("span", { class: "muted" }, `: ${count} of ${counted(images, "image")}`)));
  return html("ul", { class: "mistakes" }, ...items);
}

/** Build the matrix; for up to MOST_CLASSES_DRAWN classes. @param {number[][]} matrix @param {string[]} names */
export function confusionChart(matrix, names) {
  const longest = Math.max(...names.map((name) => Math.min(name.length, 14)));
  const left = 34 + 7.2 * longest;
  const isShort = longest <= 2;
  const top = isShort ? 40 : 30 + 5.6 * longest;
  const side = CELL * names.length;
  const right = isShort ? 4 : 4 + 4 * longest;
  const cut = (/** @type {string} */ name) => (name.length > 14 ? `${name.slice(0, 13)}…` : name);
  const cells = matrix.flatMap((row, truth) => row.map((count, label) => square(count, total(row), truth, label, names)));
  const ticks = names.map((name, place) => {
    const middle = CELL * (place + 0.5);
    const across = isShort ? { x: middle, y: -8, "text-anchor": "middle" } : { transform: `translate(${middle + 3} -7) rotate(-45)` };
    return [svg("text", { x: -8, y: middle + 4, "text-anchor": "end" }, cut(name)), svg("text", across, cut(name))];
  });
  return svg(
    "svg",
    { class: "confusion", viewBox: `${-left} ${-top} ${left + side + right} ${top + side + 2}`, width: left + side + right, role: "img", "aria-label": `Confusion matrix of ${names.length} classes. The commonest mistakes are listed beside it.` },
    svg("g", { "aria-hidden": "true" }, ...cells, ...ticks.flat(), svg("text", { class: "axis", x: side / 2, y: -top + 12, "text-anchor": "middle" }, "label"), svg("text", { class: "axis", transform: `translate(${-left + 12} ${side / 2}) rotate(-90)`, "text-anchor": "middle" }, "true class")),
  );
}

/** @param {number} count @param {number} images @param {number} truth @param {number} label @param {string[]} names */
function square(count, images, truth, label, names) {
  const share = images === 0 ? 0 : count / images;
  const kind = count === 0 ? "none" : truth === label ? "right" : "wrong";
  const strength = kind === "wrong" ? 0.25 + 0.75 * Math.min(1, 3 * share) : 0.1 + 0.9 * share ** 2;
  const said = truth === label ? `${count} of ${images} images of ${names[truth]} got the right label` : `${count} of ${images} images of ${names[truth]} were taken for ${names[label]}`;
  return svg(
    "g",
    { class: `cell ${kind}${strength > 0.55 && kind !== "none" ? " strong" : ""}`, transform: `translate(${CELL * label} ${CELL * truth})` },
    svg("title", {}, said),
    svg("rect", { width: CELL - 2, height: CELL - 2, rx: 3 }),
    kind !== "none" && svg("rect", { class: "mark", width: CELL - 2, height: CELL - 2, rx: 3, "fill-opacity": strength.toFixed(2) }),
    kind !== "none" && svg("text", { x: (CELL - 2) / 2, y: CELL / 2 + 3, "text-anchor": "middle" }, count > 9999 ? `${Math.round(count / 1000)}k` : count),
  );
}

/**
 * Build a table of the classes that are recognised least often.
 * @param {number[][]} matrix @param {string[]} names
 */
export function worstClasses(matrix, names) {
  const rows = matrix
    .map((row, place) => ({ name: names[place], images: total(row), recall: row[place] / total(row), precision: row[place] / total(matrix.map((each) => each[place])) }))
    .filter(({ images, recall }) => images > 0 && recall < 1)
    .sort((one, other) => one.recall - other.recall)
    .slice(0, MOST_WORST)
    .map(({ name, images, recall, precision }) => html("tr", {}, html("th", { scope: "row" }, name), html("td", { class: "number" }, percent(recall)), html("td", { class: "number" }, Number.isNaN(precision) ? "–" : percent(precision)), html("td", { class: "number" }, images)));
  if (rows.length === 0) return html("p", {}, `Every one of the ${names.length} classes was recognised in all of its images.`);
  const head = html("tr", {}, html("th", { scope: "col" }, "Class"), html("th", { scope: "col", class: "number" }, "Recall"), html("th", { scope: "col", class: "number" }, "Precision"), html("th", { scope: "col", class: "number" }, "Images"));
  return scrolling("Classes", html("table", {}, html("caption", {}, rows.length < MOST_WORST ? `The classes that are not always recognised, of ${names.length}` : `The ${rows.length} classes that are recognised least often, of ${names.length}`), html("thead", {}, head), html("tbody", {}, ...rows)));
}
