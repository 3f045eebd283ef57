/** The values of a line chart as a table, for readers who cannot see the lines. */

import { html } from "./dom.js";

const ROWS = 15;

/**
 * Build a table of at most 15 moments, the newest first.
 * @param {{name: string, values: (number | null)[]}[]} series
 * @param {number} intervalSeconds
 * @param {(value: number | null) => string} format
 */
export function seriesTable(series, intervalSeconds, format) {
  const count = series[0]?.values.length ?? 0;
  const step = Math.max(1, Math.ceil(count / ROWS));
  const rows = [];
  for (let at = count - 1; at >= 0; at -= step) {
    const ago = (count - 1 - at) * intervalSeconds;
    rows.push(html("tr", {}, html("th", { scope: "row" }, ago === 0 ? "now" : `${ago} s ago`), ...series.map(({ values }) => html("td", { class: "number" }, format(values[at])))));
  }
  const head = html("tr", {}, html("th", { scope: "col" }, "When"), ...series.map(({ name }) => html("th", { scope: "col", class: "number" }, name)));
  return html("table", {}, html("thead", {}, head), html("tbody", {}, ...rows));
}
