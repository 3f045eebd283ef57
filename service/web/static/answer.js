/**
 * Shows what is known of the image that is asked about: that there is none, that its answer is awaited, the answer
 * (the verdict, the classes, whether the image belongs, and the numbers), or why there is none.
 */

import { classChart, classNames, isLong, legend } from "./class_chart.js";
import { html, isolated } from "./dom.js";
import { short } from "./format.js";
import { typicalityScale } from "./typicality.js";
import { limit, verdict } from "./verdict.js";

const MEASURES = [
  ["predictive_entropy", "Predictive entropy (nats): all doubt"],
  ["expected_entropy", "Expected entropy (nats): doubt about the image itself"],
  ["mutual_information", "Mutual information (nats): the variants disagree"],
  ["variation_ratio", "Variation ratio: variants that choose another label"],
];

export class AnswerView {
  /** @param {HTMLElement} panel with what it shows before there is an image @param {HTMLElement} said what a screen reader says, and a phone shows at its bottom */
  constructor(panel, said) {
    this.panel = panel;
    this.said = said;
    this.hint = [...panel.children];
    this.showsAll = false;
    this.numbersOpen = false;
  }

  /** Mark what is shown as older than the question that is being asked. */
  expect() {
    this.panel.setAttribute("aria-busy", "true");
  }

  /** Say nothing, until there is something to say of another image. */
  hush() {
    this.said.replaceChildren();
  }

  /** Show that there is no image. */
  clear() {
    this.#draw([], this.hint);
  }

  /** Show that there is no answer to another image yet. */
  wait() {
    const sentence = "Waiting for the answer…";
    this.#draw([sentence], [html("p", { class: "waiting muted" }, sentence)]);
    this.expect();
  }

  /** Show why there is no answer. @param {string} sentence */
  refuse(sentence) {
    this.#draw([sentence], [html("p", { class: "notice" }, sentence)]);
  }

  /**
   * @param {any} response of POST /uncertainty for one image
   * @param {number | null} images that the model was calibrated on; null if that is not known
   * @param {number} milliseconds from the request to the response
   */
  show(response, images, milliseconds) {
    const [prediction] = response.predictions;
    const { kind, word, headline, confidence, sentences } = verdict(response, prediction);
    const chart = html("div", {}, classChart(prediction, this.showsAll));
    const said = [isolated(headline), ...[confidence, word].filter((each) => each !== "").map((each) => `. ${each}`)];
    this.#draw(said, [
      html(
        "div",
        { class: "verdict" },
        html("div", { class: "verdict-head" }, html("span", { class: `verdict-label ${kind}` }, headline), html("span", {}, confidence), html("span", { class: `chip ${kind}` }, word)),
        ...sentences.map((parts) => html("p", {}, ...parts)),
      ),
      chart,
      ...(isLong(prediction) ? [this.#toggle(chart, prediction)] : []),
      legend(prediction),
      ...(prediction.typicality === null ? [] : [typicalityScale(prediction.typicality, response.max_false_alarm, images)]),
      html("p", { class: "muted small" }, limit(response, prediction)),
      this.#numbers(response, prediction, milliseconds),
    ]);
  }

  #draw(/** @type {(string | Node)[]} */ said, /** @type {(string | Node)[]} */ shown) {
    this.panel.replaceChildren(...shown);
    this.panel.setAttribute("aria-busy", "false");
    const line = html("p", {}, ...said);
    if (line.textContent !== this.said.textContent) this.said.replaceChildren(...line.childNodes); // the same is not said again
  }

  #toggle(/** @type {HTMLElement} */ chart, /** @type {any} */ prediction) {
    const button = html("button", { type: "button" });
    const label = () => (button.textContent = this.showsAll ? "Show the likeliest" : `Show all ${classNames(prediction).length} classes`);
    button.addEventListener("click", () => {
      this.showsAll = !this.showsAll;
      chart.replaceChildren(classChart(prediction, this.showsAll));
      label();
    });
    label();
    return button;
  }

  #numbers(/** @type {any} */ response, /** @type {any} */ prediction, /** @type {number} */ milliseconds) {
    const rows = MEASURES.map(([name, text]) => [text, short(prediction[name])]);
    if (prediction.samples_used) rows.push(["Variants asked, until the label was decided", String(prediction.samples_used)]);
    rows.push(["Model", `${response.model}, version ${response.version}`], ["From request to answer", `${milliseconds.toFixed(0)} ms`]);
    const details = html("details", {}, html("summary", {}, "All numbers"), html("dl", { class: "measures" }, ...rows.flatMap(([name, value]) => [html("dt", {}, name), html("dd", {}, value)])));
    details.open = this.numbersOpen;
    details.addEventListener("toggle", () => (this.numbersOpen = details.open));
    return details;
  }
}
