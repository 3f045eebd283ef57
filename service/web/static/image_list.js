/** A list of several images with their answers, sorted by doubt. */

import { byId, html } from "./dom.js";
import { percent, short } from "./format.js";
import { kindOf, verdictWord } from "./verdict.js";

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
  /** @param {(item: Item) => void} onSelect */
  constructor(onSelect) {
    this.onSelect = onSelect;
    /** @type {Item[]} */
    this.items = [];
    /** @type {Item | null} */
    this.selected = null;
    this.order = byId("sort");
    this.order.append(...Object.entries(ORDERS).map(([name, [text]]) => html("option", { value: name }, text)));
    this.order.addEventListener("change", () => this.show());
  }

  /** @param {File[]} files */
  start(files) {
    for (const { url } of this.items) URL.revokeObjectURL(url);
    this.items = files.map((file) => ({ file, url: URL.createObjectURL(file), prediction: null, error: "" }));
    this.selected = null;
    byId("list").hidden = files.length < 2;
    this.show();
  }

  show() {
    const waiting = this.items.filter(({ prediction, error }) => !prediction && !error).length;
    byId("list-progress").textContent = waiting ? `${this.items.length - waiting} of ${this.items.length} answered` : `${this.items.length} images`;
    const [, key] = ORDERS[this.order.value];
    const sorted = [...this.items].sort((one, other) => key(one) - key(other) || 0);
    byId("rows").replaceChildren(...sorted.map((item) => this.#row(item)));
  }

  #row(/** @type {Item} */ item) {
    const { prediction, file, url, error } = item;
    const open = html("button", { type: "button" }, file.name);
    open.addEventListener("click", () => {
      this.selected = item;
      this.onSelect(item);
      this.show();
    });
    const image = html("td", {}, html("div", { class: "row" }, html("img", { src: url, alt: "", loading: "lazy" }), open));
    const row = html("tr", { class: item === this.selected ? "selected" : null }, image);
    if (!prediction) row.append(html("td", { colspan: 5, class: "muted" }, error || "…"));
    else {
      row.append(
        html("td", {}, prediction.label),
        html("td", { class: "number" }, percent(prediction.confidence)),
        html("td", { class: "number" }, short(prediction.predictive_entropy)),
        html("td", { class: "number" }, prediction.typicality === null ? "–" : percent(prediction.typicality)),
        html("td", {}, html("span", { class: `chip ${kindOf(prediction)}` }, verdictWord(prediction))),
      );
    }
    return row;
  }
}
