/** Shows one answer: the verdict, the classes, whether the image belongs, and the numbers. */

import { classChart, isLong, legend } from "./class_chart.js";
import { html } from "./dom.js";
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
  /** @param {HTMLElement} panel */
  constructor(panel) {
    this.panel = panel;
    this.showsAll = false;
    this.numbersOpen = false;
  }

  /**
   * @param {any} response of POST /uncertainty for one image
   * @param {string[]} names the classes in the model's order
   * @param {number} images that the model was calibrated on
   * @param {number} milliseconds from the request to the response
   */
  show(response, names, images, milliseconds) {
    const [prediction] = response.predictions;
    const { kind, word, headline, confidence, sentences } = verdict(response, prediction);
    const chart = html("div", { class: kind === "unusual" ? "void" : null }, classChart(prediction, names, this.showsAll));
    this.panel.replaceChildren(
      html(
        "div",
        { class: "verdict" },
        html("div", { class: "verdict-head" }, html("span", { class: `verdict-label ${kind}` }, headline), html("span", {}, confidence), html("span", { class: `chip ${kind}` }, word)),
        ...sentences.map((sentence) => html("p", {}, sentence)),
      ),
      chart,
      ...(isLong(names) ? [this.#toggle(chart, prediction, names)] : []),
      legend(prediction),
      ...(prediction.typicality === null ? [] : [typicalityScale(prediction.typicality, response.max_false_alarm, images)]),
      html("p", { class: "muted small" }, limit(response, prediction)),
      this.#numbers(response, prediction, milliseconds),
    );
  }

  #toggle(/** @type {HTMLElement} */ chart, /** @type {any} */ prediction, /** @type {string[]} */ names) {
    const button = html("button", { type: "button" });
    const label = () => (button.textContent = this.showsAll ? "Show the likeliest" : `Show all ${names.length} classes`);
    button.addEventListener("click", () => {
      this.showsAll = !this.showsAll;
      chart.replaceChildren(classChart(prediction, names, this.showsAll));
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
