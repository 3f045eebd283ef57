/** A list of several images with their answers, sorted by doubt. */

import { postImage, sentenceOf } from "./api.js";
import { byId, html, renew } from "./dom.js";
import { percent, short } from "./format.js";
import { readFile } from "./image_files.js";
import { Retry, passes } from "./retry.js";
import { kindOf, verdictWord } from "./verdict.js";

const AT_ONCE = 8; // requests in flight

/**
 * @typedef {{file: File, url: string, prediction: any, error: string}} Item
 */

const ORDERS = /** @type {Record<string, [string, (item: Item) => number]>} */ ({
  doubt: ["doubt, most first", ({ prediction }) => (prediction ? -prediction.predictive_entropy : -Infinity)],
  typicality: ["typicality, strangest first", ({ prediction }) => prediction?.typicality ?? -Infinity],
  confidence: ["confidence, highest first", ({ prediction }) => (prediction ? -prediction.confidence : -Infinity)],
  given: ["the order in which they came", () => 0],
});

export class ImageList {
  /** @param {(file: File) => void} onSelect */
  constructor(onSelect) {
    this.onSelect = onSelect;
    /** @type {Item[]} */
    this.items = [];
    /** @type {Item | null} */
    this.selected = null;
    this.panel = byId("list");
    this.retry = new Retry();
    this.runs = 0;
    this.order = byId("sort");
    this.order.append(...Object.entries(ORDERS).map(([name, [text]]) => html("option", { value: name }, text)));
    this.order.addEventListener("change", () => this.show());
  }

  /** @param {File[]} files */
  start(files) {
    for (const { url } of this.items) URL.revokeObjectURL(url);
    this.items = files.map((file) => ({ file, url: URL.createObjectURL(file), prediction: null, error: "" }));
    this.selected = null;
    this.panel.hidden = files.length < 2;
    this.show();
  }

  /** Mark the row of the file that is asked about, if it has one. @param {File | null} file */
  select(file) {
    this.selected = this.items.find((item) => item.file === file) ?? null;
    this.show();
  }

  /** Ask anew about all images; one alone is no list. @param {Record<string, any>} query */
  ask(query) {
    for (const item of this.items) [item.prediction, item.error] = [null, ""];
    void this.#answer(this.items.length > 1 ? this.items : [], query);
  }

  async #answer(/** @type {Item[]} */ items, /** @type {Record<string, any>} */ query) {
    const run = ++this.runs; // a newer run ends this one
    this.retry.stop();
    this.panel.setAttribute("aria-busy", "true");
    for (let start = 0; start < items.length; start += AT_ONCE) {
      const batch = items.slice(start, start + AT_ONCE);
      const answers = await Promise.allSettled(batch.map(async ({ file }) => postImage("uncertainty", query, await readFile(file))));
      if (run !== this.runs) return;
      answers.forEach(({ value, reason }, place) => ([batch[place].prediction, batch[place].error] = value ? [value.predictions[0], ""] : [null, sentenceOf(reason)]));
      this.show();
      const again = batch.filter((_, place) => passes(answers[place].reason));
      if (again.length > 0) {
        this.retry.start(() => void this.#answer([...again, ...items.slice(start + AT_ONCE)], query));
        break;
      }
    }
    this.panel.setAttribute("aria-busy", "false");
  }

  show() {
    const waiting = this.items.filter(({ prediction, error }) => !prediction && !error).length;
    byId("list-progress").textContent = waiting ? `${this.items.length - waiting} of ${this.items.length} answered` : `${this.items.length} images`;
    const [, key] = ORDERS[this.order.value];
    const sorted = [...this.items].sort((one, other) => key(one) - key(other) || 0);
    renew(byId("rows"), ...sorted.map((item) => this.#row(item)));
  }

  #row(/** @type {Item} */ item) {
    const { prediction, file, url, error } = item;
    const open = html("button", { type: "button", "data-key": url }, file.name);
    open.addEventListener("click", () => this.onSelect(item.file));
    const image = html("td", {}, html("div", { class: "row" }, html("img", { src: url, alt: "", loading: "lazy" }), open));
    const row = html("tr", { class: item === this.selected ? "selected" : null }, image);
    if (!prediction) row.append(html("td", { colspan: 5, class: "muted" }, error || "…"));
    else {
      row.append(
        html("td", { "data-label": "Label" }, prediction.label),
        html("td", { class: "number", "data-label": "Confidence" }, percent(prediction.confidence)),
        html("td", { class: "number", "data-label": "Doubt" }, short(prediction.predictive_entropy)),
        html("td", { class: "number", "data-label": "Typicality" }, prediction.typicality === null ? "–" : percent(prediction.typicality)),
        html("td", {}, html("span", { class: `chip ${kindOf(prediction)}` }, verdictWord(prediction))),
      );
    }
    return row;
  }
}
