/** The settings of a question: the method, and sliders whose values are sent once they were moved. */

import { byId, html } from "./dom.js";
import { percent } from "./format.js";

// `usual` is where a slider stands before the first answer: one that stood at an end could not be moved there.
const RISKS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3];
const SLIDERS = [
  { name: "samples", label: "Variants asked (samples)", values: [8, 16, 32, 64, 128, 256, 512, 1024], usual: 64, write: String, methods: ["sampled"] },
  { name: "seed", label: "Which variants (seed)", values: Array.from({ length: 100 }, (_, seed) => seed), usual: 0, write: String, methods: ["sampled", "adaptive"] },
  { name: "coverage", label: "Coverage of the set", values: [0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999], usual: 0.9, write: percent },
  { name: "max_risk", label: "Wrong answers allowed", values: RISKS, usual: 0.05, write: percent },
  { name: "max_false_alarm", label: "Usual images called unusual", values: RISKS, usual: 0.01, write: percent },
];
const NOTES = {
  sampled: "Dropout stays active: a fixed number of thinned networks is asked.",
  adaptive: "As many thinned networks are asked as decide the label.",
  analytic: "The spread is computed in closed form, without a sample. For models with one dropout layer.",
};

export class Settings {
  /** @param {() => void} onChange called after each change that a person makes */
  constructor(onChange) {
    this.method = "sampled";
    /** @type {Record<string, number>} what a person has chosen */
    this.chosen = {};
    this.onChange = onChange;
    this.buttons = [...document.querySelectorAll("[data-method]")];
    for (const button of this.buttons) button.addEventListener("click", () => this.#choose(String(button.getAttribute("data-method"))));
    this.sliders = SLIDERS.map((slider) => this.#build(slider));
    byId("reset").addEventListener("click", () => {
      this.chosen = {};
      this.#choose("sampled");
    });
    this.#show();
  }

  /** Return the query parameters of a question, without those that the service chooses. */
  query() {
    const { samples, seed, ...levels } = this.chosen;
    if (this.method === "analytic") return { method: "analytic", ...levels };
    if (this.method === "adaptive") return { samples: "auto", seed, ...levels };
    return { samples, seed, ...levels };
  }

  /** Put the sliders that nobody has moved where the service's answer has them. @param {any} response */
  follow(response) {
    for (const { name, values, input, output, write } of this.sliders) {
      const value = response[name];
      if (name in this.chosen || typeof value !== "number") continue;
      input.value = String(nearest(values, value));
      output.textContent = write(value);
      input.setAttribute("aria-valuetext", write(value));
    }
  }

  #choose(/** @type {string} */ method) {
    this.method = method;
    this.#show();
    this.onChange();
  }

  #show() {
    for (const button of this.buttons) button.setAttribute("aria-pressed", String(button.getAttribute("data-method") === this.method));
    byId("method-note").textContent = NOTES[/** @type {keyof typeof NOTES} */ (this.method)];
    for (const { row, methods } of this.sliders) row.hidden = methods !== undefined && !methods.includes(this.method);
  }

  #build(/** @type {any} */ slider) {
    const output = html("output", {}, "–");
    const input = html("input", { type: "range", min: 0, max: slider.values.length - 1, step: 1, id: `slider-${slider.name}` });
    input.value = String(nearest(slider.values, slider.usual));
    const row = html("div", { class: "slider" }, html("label", { for: input.id }, slider.label), output, input);
    input.addEventListener("input", () => {
      const value = slider.values[Number(input.value)];
      this.chosen[slider.name] = value;
      output.textContent = slider.write(value);
      input.setAttribute("aria-valuetext", slider.write(value));
      this.onChange();
    });
    byId("sliders").append(row);
    return { ...slider, input, output, row };
  }
}

/** @param {number[]} values @param {number} value @returns {number} the place of the value that is nearest */
const nearest = (values, value) => values.reduce((best, each, place) => (Math.abs(each - value) < Math.abs(values[best] - value) ? place : best), 0);
