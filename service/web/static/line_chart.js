/** A line chart of the last minutes in SVG, which is updated in place. */

import { html, svg } from "./dom.js";
import { seriesTable } from "./series_table.js";

const HEIGHT = 150;
const MARGIN = { left: 46, right: 10, top: 8, bottom: 20 };

/**
 * @typedef {{name: string, values: (number | null)[]}} Series
 * @typedef {object} Options
 * @property {string} title
 * @property {string} unit behind the title
 * @property {(value: number | null) => string} format
 * @property {boolean} [isLog] a logarithmic scale, for values that differ by orders of magnitude
 * @property {boolean} [isArea] fill below the first line
 * @property {number} [least] the scale reaches at least so far
 */

export class LineChart {
  /** @type {Series[]} */
  #series = [];
  #intervalSeconds = 5;
  /** @type {number | null} the interval under the pointer, or chosen by the arrow keys */
  #chosen = null;

  /** @param {HTMLElement} place @param {Options} options */
  constructor(place, options) {
    this.options = options;
    this.plot = svg("g");
    this.root = svg("svg", {
      height: HEIGHT, role: "img", tabindex: 0,
      onpointermove: /** @param {any} event */ (event) => this.#point(event),
      onpointerleave: () => this.#choose(null),
      onblur: () => this.#choose(null),
      onkeydown: /** @param {any} event */ (event) => this.#step(event),
    }, this.plot);
    this.legend = html("figcaption");
    this.table = html("div", { class: "table-scroll", tabindex: 0, role: "region", "aria-label": `${options.title} as a table` });
    this.details = html("details", { ontoggle: () => this.#drawTable() }, html("summary", {}, "As a table"), this.table);
    place.replaceChildren(html("figure", { class: "chart" }, this.legend, this.root, this.details));
    new ResizeObserver(() => this.#draw()).observe(this.root);
  }

  /** @param {Series[]} series all as long @param {number} intervalSeconds */
  update(series, intervalSeconds) {
    this.#series = series;
    this.#intervalSeconds = intervalSeconds;
    this.#draw();
  }

  #draw() {
    const width = this.root.clientWidth || 400;
    const count = this.#series[0]?.values.length ?? 0;
    if (!count) return;
    this.root.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    const scale = this.options.isLog ? logScale(this.#series) : linearScale(this.#series, this.options.least ?? 0);
    const x = (/** @type {number} */ at) => MARGIN.left + ((at + 0.5) / count) * (width - MARGIN.left - MARGIN.right);
    const y = (/** @type {number} */ value) => MARGIN.top + (1 - scale.place(value)) * (HEIGHT - MARGIN.top - MARGIN.bottom);
    this.#x = x;
    const lines = this.#series.map(({ values }, tone) => svg("path", { class: `series tone-${tone}`, d: path(values, x, y) })).reverse();
    const area = this.options.isArea ? [svg("path", { class: "series-area tone-0", d: areaPath(this.#series[0].values, x, y, HEIGHT - MARGIN.bottom) })] : [];
    this.plot.replaceChildren(...this.#axes(scale, y, width, count), ...area, ...lines, ...this.#cursor());
    this.#describe();
    this.#drawTable();
  }

  /** @type {(at: number) => number} */
  #x = () => 0;

  /** @param {{ticks: number[]}} scale @param {(value: number) => number} y @param {number} width @param {number} count */
  #axes(scale, y, width, count) {
    const minutes = (count * this.#intervalSeconds) / 60;
    const inner = width - MARGIN.left - MARGIN.right;
    const parts = minutes > 5 ? 3 : inner < 380 ? 2 : minutes > 1 ? 5 : 4;
    const steps = Array.from({ length: parts + 1 }, (_, part) => (part * minutes) / parts);
    return [
      ...scale.ticks.flatMap((tick) => [
        svg("line", { class: "grid-line", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(tick), y2: y(tick) }),
        svg("text", { class: "axis-text", x: MARGIN.left - 6, y: y(tick) + 4, "text-anchor": "end" }, this.options.format(tick)),
      ]),
      ...steps.map((step) =>
        svg("text", {
          class: "axis-text", x: MARGIN.left + inner * (1 - step / minutes), y: HEIGHT - 4,
          "text-anchor": step === 0 ? "end" : step === minutes ? "start" : "middle",
        }, step === 0 ? "now" : minutes > 1 ? `−${step} min` : `−${step * 60} s`)),
    ];
  }

  #cursor() {
    if (this.#chosen === null) return [];
    const x = this.#x(this.#chosen);
    return [svg("line", { class: "cursor", x1: x, x2: x, y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom })];
  }

  #describe() {
    const { title, unit, format } = this.options;
    const count = this.#series[0]?.values.length ?? 0;
    const at = this.#chosen ?? count - 1;
    const ago = (count - 1 - at) * this.#intervalSeconds;
    const when = ago === 0 ? "now" : ago < 60 ? `${ago} s ago` : `${Math.floor(ago / 60)} min ${ago % 60} s ago`;
    const legend = this.#series.map(({ name, values }, tone) =>
      html("span", { class: "legend" },
        this.#series.length > 1 && svg("svg", { "aria-hidden": "true", viewBox: "0 0 22 8" }, svg("line", { class: `series tone-${tone}`, x1: 1, x2: 21, y1: 4, y2: 4 })),
        this.#series.length > 1 && name, html("span", { class: "muted" }, format(values[at] ?? null))));
    this.legend.replaceChildren(html("span", { class: "chart-title" }, title, " ", html("span", { class: "muted" }, unit, this.#chosen === null ? "" : `, ${when}`)), ...legend);
    const parts = this.#series.map(({ name, values }) => {
      const known = values.filter((value) => value !== null);
      if (!known.length) return `${name} unknown`;
      return `${name} ${format(values[at] ?? null)}, lowest ${format(Math.min(...known))}, highest ${format(Math.max(...known))}`;
    });
    this.root.setAttribute("aria-label", `${title}, ${unit}, ${when}: ${parts.join("; ")}. Arrow keys move through time.`);
  }

  #drawTable() {
    if (this.details.open) this.table.replaceChildren(seriesTable(this.#series, this.#intervalSeconds, this.options.format));
  }

  /** @param {PointerEvent} event */
  #point(event) {
    const box = this.root.getBoundingClientRect();
    const count = this.#series[0]?.values.length ?? 0;
    const share = (event.clientX - box.left - MARGIN.left) / (box.width - MARGIN.left - MARGIN.right);
    this.#choose(count && share >= 0 && share <= 1 ? Math.min(count - 1, Math.floor(share * count)) : null);
  }

  /** @param {KeyboardEvent} event */
  #step(event) {
    const count = this.#series[0]?.values.length ?? 0;
    const at = this.#chosen ?? count - 1;
    /** @type {Record<string, number | null>} */
    const target = { ArrowLeft: Math.max(0, at - 1), ArrowRight: Math.min(count - 1, at + 1), Home: 0, End: count - 1, Escape: null };
    if (!count || !(event.key in target)) return;
    event.preventDefault();
    this.#choose(target[event.key]);
  }

  /** @param {number | null} at */
  #choose(at) {
    if (at === this.#chosen) return;
    this.#chosen = at;
    this.plot.querySelector(".cursor")?.remove();
    this.plot.append(...this.#cursor());
    this.#describe();
  }
}

/** @param {Series[]} series @param {number} least */
function linearScale(series, least) {
  const most = Math.max(least, ...series.flatMap(({ values }) => values.map((value) => value ?? 0))) || 1;
  const power = 10 ** Math.floor(Math.log10(most / 2));
  const step = /** @type {number} */ ([1, 2, 2.5, 5, 10].map((each) => each * power).find((each) => each * 3 >= most));
  const top = step * Math.ceil(most / step - 1e-9);
  const ticks = Array.from({ length: Math.round(top / step) + 1 }, (_, number) => number * step);
  return { ticks, place: (/** @type {number} */ value) => value / top };
}

/** @param {Series[]} series */
function logScale(series) {
  const known = series.flatMap(({ values }) => values.filter((value) => value !== null && value > 0)).map(Number);
  const low = Math.floor(Math.log10(Math.min(...known, 0.001) * 1.0001));
  const high = Math.max(low + 1, Math.ceil(Math.log10(Math.max(...known, 0.001) * 0.9999)));
  const ticks = Array.from({ length: high - low + 1 }, (_, number) => 10 ** (low + number));
  return { ticks, place: (/** @type {number} */ value) => Math.max(0, (Math.log10(value) - low) / (high - low)) };
}

/** @param {(number | null)[]} values @param {(at: number) => number} x @param {(value: number) => number} y */
function path(values, x, y) {
  let isDrawing = false;
  return values.map((value, at) => {
    const command = value === null ? "" : `${isDrawing ? "L" : "M"}${x(at).toFixed(1)} ${y(value).toFixed(1)}${isDrawing ? "" : "h0"}`;
    isDrawing = value !== null;
    return command;
  }).join("");
}

/** @param {(number | null)[]} values @param {(at: number) => number} x @param {(value: number) => number} y @param {number} floor */
function areaPath(values, x, y, floor) {
  const known = values.flatMap((value, at) => (value === null ? [] : [[x(at), y(value)]]));
  if (!known.length) return "";
  const points = known.map(([left, top]) => `${left.toFixed(1)} ${top.toFixed(1)}`).join("L");
  return `M${known[0][0].toFixed(1)} ${floor}L${points}L${known[known.length - 1][0].toFixed(1)} ${floor}Z`;
}
