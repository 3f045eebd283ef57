/** Requests: the tiles, rates and latencies by route, and the table of routes. */

import { byId, html, renew, scrolling } from "./dom.js";
import { percent, short } from "./format.js";
import { LineChart } from "./line_chart.js";

const ALL = "";
const OPERATORS = "Pages, health and metrics";
const rate = new LineChart(byId("rate-chart"), { title: "Requests", unit: "a second", format: short, isArea: true });
const latency = new LineChart(byId("latency-chart"), { title: "Time of a request", unit: "half, 90% and 99% take no longer", format: duration, isLog: true });

/** Show the requests of a window. @param {any} recent GET /metrics/recent @param {number} window */
export function showRequests(recent, window) {
  const route = chosenRoute(recent);
  const found = recent.routes.find((/** @type {any} */ each) => each.route === route) ?? recent.requests;
  const seconds = recent.interval_seconds;
  const count = recent.windows_seconds[window] / seconds;
  const newest = (/** @type {any[]} */ values) => values.slice(-count);
  const rates = (/** @type {number[]} */ values) => newest(values.map((value, at) => (recent.workers[at] ? value / seconds : null)));
  rate.update([
    { name: "answered", values: rates(found.answered) },
    { name: "refused (4xx)", values: rates(found.refused) },
    { name: "failed (5xx)", values: rates(found.failed) },
  ], seconds);
  latency.update(["p50", "p90", "p99"].map((name) => ({ name, values: newest(found.seconds[name]) })), seconds);
  showTable(recent, window);
}

/** Return the tiles of a window: name, value, more, whether it is bad. @param {any} recent @param {number} window */
export function requestTiles(recent, window) {
  const { answered, refused, failed, seconds } = recent.requests.windows[window];
  const total = answered + refused + failed;
  const length = recordedSeconds(recent, window);
  return [
    ["Requests a second", short(length ? total / length : null), `${total.toLocaleString("en")} in all`, false],
    ["Failed (5xx)", total ? percent(failed / total) : "–", `refused (4xx): ${total ? percent(refused / total) : "–"}`, failed > 0],
    ["Median time", duration(seconds.p50), `p90 ${duration(seconds.p90)}, p99 ${duration(seconds.p99)}`, false],
  ];
}

/** Write a duration. @param {number | null} seconds */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 0.001) return `${Number((1e6 * seconds).toPrecision(2))} µs`;
  return seconds < 1 ? `${Number((1000 * seconds).toPrecision(seconds < 0.1 ? 2 : 3))} ms` : `${Number(seconds.toPrecision(3))} s`;
}

/** Return how much of a window the service was there, seconds. @param {any} recent @param {number} window */
function recordedSeconds(recent, window) {
  const count = recent.windows_seconds[window] / recent.interval_seconds;
  return recent.interval_seconds * recent.workers.slice(-count).filter((/** @type {number} */ each) => each > 0).length;
}

/** @param {any} recent */
function chosenRoute(recent) {
  const select = byId("route");
  const names = [ALL, ...recent.routes.map((/** @type {any} */ each) => each.route).sort()];
  if (select.options.length !== names.length || names.some((name, at) => select.options[at].value !== name)) {
    const chosen = names.includes(select.value) ? select.value : ALL;
    select.replaceChildren(...names.map((name) => html("option", { value: name }, name === ALL ? "all that clients ask" : routeName(name))));
    select.value = chosen;
  }
  return select.value;
}

/** @param {string} route */
const routeName = (route) => (route === "unmatched" ? "no such route" : route);

/** @param {any} recent @param {number} window */
function showTable(recent, window) {
  const place = byId("routes");
  const [forClients, forOperators] = [false, true].map((wanted) =>
    recent.routes.filter((/** @type {any} */ each) => each.for_operators === wanted && sum(each.windows[window]) > 0));
  const isOpen = place.querySelector("details")?.open ?? false;
  renew(
    place,
    forClients.length ? table("Routes", forClients, window) : html("p", { class: "muted small" }, "No request of a client in this time."),
    forOperators.length > 0 && html("details", { class: "small", open: isOpen }, html("summary", { "data-key": OPERATORS }, OPERATORS), table(`Routes: ${OPERATORS}`, forOperators, window)),
  );
}

/** @param {string} label @param {any[]} routes @param {number} window */
function table(label, routes, window) {
  const head = ["Route", "Requests", "Refused", "Failed", "p50", "p90", "p99"].map((text, at) => html("th", { scope: "col", class: at ? "number" : null }, text));
  const rows = routes.map(({ route, windows }) => {
    const { answered, refused, failed, seconds } = windows[window];
    const cells = [answered + refused + failed, refused, failed].map((value) => value.toLocaleString("en"));
    return html("tr", {},
      html("td", {}, html("button", { type: "button", class: "link", "data-key": route, title: "Show it in the charts", onclick: () => choose(route) }, routeName(route))),
      ...[...cells, duration(seconds.p50), duration(seconds.p90), duration(seconds.p99)].map((text) => html("td", { class: "number" }, text)));
  });
  return scrolling(label, html("table", {}, html("thead", {}, html("tr", {}, ...head)), html("tbody", {}, ...rows)));
}

/** @param {string} route */
function choose(route) {
  byId("route").value = route;
  byId("route").dispatchEvent(new Event("change"));
}

/** @param {any} counts */
const sum = ({ answered, refused, failed }) => answered + refused + failed;
