/** The engine: batches, the queue, memory and processors. */

import { byId } from "./dom.js";
import { short } from "./format.js";
import { Histogram } from "./histogram.js";
import { LineChart } from "./line_chart.js";
import { duration } from "./monitor_requests.js";

const charts = {
  rows_per_run: new LineChart(byId("rows-chart"), { title: "Images in a batch", unit: "mean", format: short, least: 2 }),
  queue_seconds: new LineChart(byId("queue-chart"), { title: "Wait for the batch", unit: "mean of the requests", format: duration, least: 0.001 }),
  queue_rows: new LineChart(byId("waiting-chart"), { title: "In the queue", unit: "images that wait, and requests in flight", format: short, least: 4 }),
  memory_bytes: new LineChart(byId("memory-chart"), { title: "Memory", unit: "resident, all processes", format: bytes, isArea: true, least: 1e8 }),
  processors: new LineChart(byId("processor-chart"), { title: "Processors", unit: "1 for one fully used", format: short, isArea: true, least: 1 }),
};
const batches = new Histogram(byId("batch-histogram"), { title: "Batches", unit: "images", note: "Requests that arrive during a run share the next one.", isWhole: true, noun: "run" });

/** Show a window. @param {any} recent GET /metrics/recent @param {number} window */
export function showEngine(recent, window) {
  const count = recent.windows_seconds[window] / recent.interval_seconds;
  const { engine } = recent;
  for (const [name, chart] of Object.entries(charts)) {
    const series = [{ name: name === "queue_rows" ? "images" : "value", values: engine[name].slice(-count) }];
    if (name === "queue_rows") series.push({ name: "requests", values: engine.in_flight.slice(-count) });
    chart.update(series, recent.interval_seconds);
  }
  batches.update(engine.batch_rows.edges, engine.batch_rows.counts[window], null);
}

/** Return the tiles. @param {any} recent */
export function engineTiles({ engine, workers }) {
  const last = (/** @type {any[]} */ values) => values[values.length - 1];
  const count = last(workers);
  return [
    ["Memory", bytes(last(engine.memory_bytes)), count ? `${count} worker${count === 1 ? "" : "s"}` : "not recorded yet", false],
    ["Processors", short(last(engine.processors)), `queue: ${short(last(engine.queue_rows))} images`, false],
  ];
}

/** @param {number | null} value */
function bytes(value) {
  if (value === null || value === undefined) return "–";
  return value >= 1e9 ? `${Number((value / 1e9).toPrecision(3))} GB` : `${Math.round(value / 1e6)} MB`;
}
