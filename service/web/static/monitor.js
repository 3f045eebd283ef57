/** The page /ui/monitor: asks the service every few seconds, and shows what it says. */

import { ROOT, address, fetchJson, sentenceOf } from "./api.js";
import { byId, html, say } from "./dom.js";
import { doubtTiles, showDoubt } from "./monitor_doubt.js";
import { engineTiles, showEngine } from "./monitor_engine.js";
import { feedbackAlarms } from "./monitor_feedback.js";
import { requestTiles, showRequests } from "./monitor_requests.js";
import { Poll } from "./poll.js";

/** @type {any} */
let recent = null;
let shownWindow = 2;
/** When the last answer came, of `Date.now()`. */
let answered = 0;

const poll = new Poll(() => fetchJson(address("metrics/recent")), show, showSilence);

byId("pause").addEventListener("click", () => {
  poll.isPaused = !poll.isPaused;
  byId("pause").setAttribute("aria-pressed", String(poll.isPaused));
  if (poll.isPaused) setState("paused", `Paused; the numbers are of ${clock(answered)}`);
});
for (const button of document.querySelectorAll("[data-window]")) {
  button.addEventListener("click", () => {
    shownWindow = Number(/** @type {HTMLElement} */ (button).dataset.window);
    for (const each of document.querySelectorAll("[data-window]")) each.setAttribute("aria-pressed", String(each === button));
    draw();
  });
}
byId("route").addEventListener("change", draw);
byId("version").addEventListener("change", draw);
byId("example").textContent = `curl -F file=@image.png ${new URL("uncertainty", ROOT)}`;

/** @param {any} answer */
function show(answer) {
  recent = answer;
  answered = Date.now();
  say(byId("notice"), "");
  byId("figures").classList.remove("is-stale");
  const workers = answer.workers[answer.workers.length - 1];
  setState("live", `Live${workers > 1 ? `, ${workers} workers` : ""}`);
  draw();
}

/** @param {unknown} error */
function showSilence(error) {
  const since = answered ? ` The numbers below are of ${clock(answered)}.` : "";
  say(byId("notice"), sentenceOf(error) + since);
  byId("figures").classList.add("is-stale");
  setState("silent", "No answer");
}

function draw() {
  if (!recent) return;
  byId("figures").hidden = false;
  const { answered: good, refused, failed } = recent.requests.windows[recent.windows_seconds.length - 1];
  byId("empty").hidden = good + refused + failed > 0;
  byId("requests").hidden = !byId("empty").hidden;
  const tiles = [...requestTiles(recent, shownWindow), ...doubtTiles(recent, shownWindow), ...engineTiles(recent)];
  byId("tiles").replaceChildren(...tiles.map(([name, value, more, isBad]) =>
    html("div", { class: isBad ? "tile is-bad" : "tile" }, html("dt", {}, name), html("dd", {}, value), html("dd", {}, more))));
  showAlarms();
  showRequests(recent, shownWindow);
  showDoubt(recent, shownWindow);
  showEngine(recent, shownWindow);
}

function showAlarms() {
  const drifts = recent.versions.filter((/** @type {any} */ each) => each.drift.alarm).map((/** @type {any} */ { model, version, drift }) => {
    const figures = ["typicality", "confidence"].filter((figure) => drift[figure].alarm);
    return html("p", { class: "notice" }, html("strong", {}, `Drift alarm: ${model} ${version}. `),
      `By their ${figures.join(" and ")}, the images that arrive are not like the validation images. Check what is sent; to end the alarm: `,
      html("code", {}, `python -m service.control reset-drift ${model}`), ".");
  });
  const refused = recent.refused.map((/** @type {any} */ { name, version, reason }) =>
    html("p", { class: "notice" }, html("strong", {}, `Refused: ${name} ${version}. `), reason));
  const place = byId("alarms");
  const notices = [...recent.versions.flatMap(feedbackAlarms), ...drifts, ...refused];
  place.hidden = notices.length === 0;
  if (notices.map((each) => each.textContent).join() !== [...place.children].map((each) => each.textContent).join()) place.replaceChildren(...notices);
}

/** @param {string} state live, paused or silent @param {string} text */
function setState(state, text) {
  byId("state").dataset.state = state;
  if (byId("state-text").textContent !== text) byId("state-text").textContent = text;
}

/** @param {number} time */
const clock = (time) => new Date(time).toLocaleTimeString();
