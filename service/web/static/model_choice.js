/** The models that the service offers, and the one that is chosen. */

import { ServiceError, getModels } from "./api.js";
import { byId, html } from "./dom.js";
import { percent } from "./format.js";

export class ModelChoice {
  /** @param {() => void} onChange called when a person has chosen another */
  constructor(onChange) {
    this.select = byId("model");
    /** @type {any[]} */
    this.models = [];
    this.select.addEventListener("change", onChange);
  }

  /** The chosen one, as `GET /models` gives it. */
  get model() {
    return this.models.find(({ name }) => name === this.select.value);
  }

  /** What a question has to name: nothing where there is one model. @returns {string | null} */
  get name() {
    return this.models.length > 1 ? this.model.name : null;
  }

  /** Ask which models there are, and offer them; the one that was chosen stays so while it is there. */
  async load() {
    const { models, default: first } = await getModels();
    if (models.length === 0) throw new ServiceError("No model is loaded yet: train one with `python -m training`, and it appears here by itself.", "not_ready", 503);
    const names = models.map((/** @type {any} */ { name }) => name);
    const chosen = [this.model?.name, first].find((name) => names.includes(name)) ?? names[0];
    this.models = models;
    this.select.replaceChildren(...models.map(option));
    this.select.value = chosen;
  }

  /** Return what is known of a version of the chosen model. @param {string} number */
  version(number) {
    return this.model?.versions.find((/** @type {any} */ { version }) => version === number);
  }
}

const option = (/** @type {any} */ { name, test_accuracy }) => html("option", { value: name }, test_accuracy === null ? name : `${name} (right for ${percent(test_accuracy)} of test images)`);
