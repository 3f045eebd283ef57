/** A histogram in SVG beside a reference, with bars as wide as each other. */

import { html, svg } from "./dom.js";
import { percent, short } from "./format.js";

const HEIGHT = 150;
const WIDEST_BAR = 56;
const MARGIN = { left: 34, right: 6, top: 8, bottom: 20 };

/**
 * @typedef {object} Options
 * @property {string} title
 * @property {string} unit
 * @property {string} note what it says, for readers who do not know it
 * @property {boolean} [isWhole] the values are whole numbers
 * @property {number} [mark] an edge that is marked
 * @property {string} [noun] what is counted
 */

export class Histogram {
  /** @param {HTMLElement} place @param {Options} options */
  constructor(place, options) {
    this.options = options;
    this.plot = svg("g");
    this.root = svg("svg", { height: HEIGHT, role: "img" }, this.plot);
    this.legend = html("figcaption");
    this.note = html("p", { class: "muted small" }, options.note);
    this.table = html("div", { class: "table-scroll", tabindex: 0, role: "region", "aria-label": `${options.title} as a table` });
    this.details = html("details", { ontoggle: () => this.#drawTable() }, html("summary", {}, "As a table"), this.table);
    place.replaceChildren(html("figure", { class: "chart" }, this.legend, this.root, this.note, this.details));
    new ResizeObserver(() => this.#draw()).observe(this.root);
  }

  /**
   * @param {number[]} edges upper ends of the buckets; one more follows
   * @param {number[]} counts by bucket
   * @param {number[] | null} reference shares by bucket; null: unknown
   */
  update(edges, counts, reference) {
    const last = Math.max(0, lastOf(counts), lastOf(reference ?? []));
    const first = this.options.isWhole && edges[0] === 0 ? 1 : 0; // no set is empty
    const total = counts.reduce((sum, count) => sum + count, 0);
    this.buckets = counts.map((count, at) => ({
      low: at ? edges[at - 1] : 0, high: at < edges.length ? edges[at] : null,
      share: total ? count / total : 0, reference: reference ? reference[at] : null, count,
    })).slice(first, last + 1);
    this.total = total;
    this.#draw();
  }

  #draw() {
    if (!this.buckets) return;
    const width = this.root.clientWidth || 260;
    this.root.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    const floor = HEIGHT - MARGIN.bottom;
    const most = Math.max(0.1, ...this.buckets.map(({ share, reference }) => Math.max(share, reference ?? 0)));
    const top = [0.1, 0.2, 0.4, 0.6, 0.8, 1].find((each) => each >= most - 1e-9) ?? 1;
    const step = (width - MARGIN.left - MARGIN.right) / this.buckets.length;
    const x = (/** @type {number} */ at) => MARGIN.left + at * step;
    const y = (/** @type {number} */ share) => floor - (share / top) * (floor - MARGIN.top);
    const wide = Math.min(step, WIDEST_BAR);
    const left = (/** @type {number} */ at) => x(at) + (step - wide) / 2;
    const bars = this.buckets.map(({ share }, at) => svg("rect", { class: "bar", x: left(at) + 1, width: Math.max(1, wide - 2), y: y(share), height: floor - y(share) }));
    const join = wide < step ? "M" : "L";
    const outline = this.buckets.map(({ reference }, at) => `${at ? join : "M"}${left(at)} ${y(reference ?? 0)}h${wide}`).join("");
    const hasReference = this.buckets.some(({ reference }) => reference !== null);
    this.plot.replaceChildren(
      ...[0, top / 2, top].flatMap((share) => [
        svg("line", { class: "grid-line", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(share), y2: y(share) }),
        svg("text", { class: "axis-text", x: MARGIN.left - 5, y: y(share) + 4, "text-anchor": "end" }, `${Math.round(100 * share)}%`),
      ]),
      ...bars,
      hasReference ? svg("path", { class: "reference", d: outline }) : svg("g"),
      ...this.#labels(x, step),
    );
    this.#describe(hasReference);
    this.#drawTable();
  }

  /** @param {(at: number) => number} x @param {number} step */
  #labels(x, step) {
    const texts = this.options.isWhole
      ? this.buckets.map((bucket, at) => ({ at: at + 0.5, text: wholeName(bucket), edge: null }))
      : this.buckets.map(({ high }, at) => ({ at: at + 1, text: high === null ? "" : short(high), edge: high })).slice(0, -1);
    let free = 0;
    const shown = texts.flatMap(({ at, text }) => {
      const wide = 6.5 * text.length;
      if (!text || x(at) - wide / 2 < free) return [];
      free = x(at) + wide / 2 + 8;
      return [svg("text", { class: "axis-text", x: x(at), y: HEIGHT - 5, "text-anchor": "middle" }, text)];
    });
    const marked = texts.find(({ edge }) => edge !== null && edge === this.options.mark);
    if (!marked) return shown;
    return [...shown, svg("line", { class: "mark", x1: x(marked.at), x2: x(marked.at), y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom })];
  }

  /** @param {boolean} hasReference */
  #describe(hasReference) {
    const { title, unit, noun = "image" } = this.options;
    const parts = [
      html("span", { class: "chart-title" }, title, " ", html("span", { class: "muted" }, unit)),
      html("span", { class: "legend" }, svg("svg", { "aria-hidden": "true", viewBox: "0 0 22 8" }, svg("rect", { class: "bar", x: 1, y: 0, width: 20, height: 8 })), `${this.total.toLocaleString("en")} ${noun}${this.total === 1 ? "" : "s"}`),
      hasReference && html("span", { class: "legend" }, svg("svg", { "aria-hidden": "true", viewBox: "0 0 22 8" }, svg("line", { class: "reference", x1: 0, x2: 22, y1: 4, y2: 4 })), "validation images"),
    ];
    this.legend.replaceChildren(...parts.filter((part) => part !== false));
    const highest = this.buckets.reduce((best, bucket) => (bucket.share > best.share ? bucket : best), this.buckets[0]);
    const text = this.total && highest ? `most often ${rangeName(highest, this.options.isWhole)}: ${percent(highest.share)} of ${this.total}${highest.reference === null ? "" : `, ${percent(highest.reference)} of the validation images`}` : "none";
    this.root.setAttribute("aria-label", `${title}, ${unit}: ${text}.`);
  }

  #drawTable() {
    if (!this.details.open || !this.buckets) return;
    const rows = this.buckets.map((bucket) => html("tr", {},
      html("th", { scope: "row" }, rangeName(bucket, this.options.isWhole)),
      html("td", { class: "number" }, bucket.count),
      html("td", { class: "number" }, percent(bucket.share)),
      html("td", { class: "number" }, bucket.reference === null ? "–" : percent(bucket.reference))));
    const head = html("tr", {}, ...[this.options.unit, "Count", "Share", "Validation"].map((text, at) => html("th", { scope: "col", class: at ? "number" : null }, text)));
    this.table.replaceChildren(html("table", {}, html("thead", {}, head), html("tbody", {}, ...rows)));
  }
}

/** @param {number[]} values the place of the last one that is not 0 */
const lastOf = (values) => values.findLastIndex((value) => value > 0);

/** @param {{low: number, high: number | null}} bucket */
function wholeName({ low, high }) {
  if (high === null) return `> ${low}`;
  return high - low <= 1 ? String(high) : `${low + 1}–${high}`;
}

/** @param {{low: number, high: number | null}} bucket @param {boolean} [isWhole] */
function rangeName(bucket, isWhole = false) {
  if (isWhole) return wholeName(bucket);
  return bucket.high === null ? `> ${bucket.low}` : `${bucket.low} to ${bucket.high}`;
}
