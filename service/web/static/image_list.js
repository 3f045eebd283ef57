/** A list of several images with their answers, sorted by doubt. */

import { postImage, sentenceOf } from "./api.js";
import { pause, untilAnswered } from "./asking.js";
import { byId, html, renew } from "./dom.js";
import { percent, short } from "./format.js";
import { readFile } from "./image_files.js";
import { kindOf, verdictWord } from "./verdict.js";

const AT_ONCE = 8; // requests in flight
const SETTLING_MILLISECONDS = 300; // a slider that moves asks about no list

/** @typedef {Record<string, any>} Query of POST /uncertainty */

const ORDERS = /** @type {Record<string, [string, (row: Row) => number]>} */ ({
  doubt: ["doubt, most first", ({ prediction }) => (prediction ? -prediction.predictive_entropy : -Infinity)],
  typicality: ["typicality, strangest first", ({ prediction }) => prediction?.typicality ?? -Infinity],
  confidence: ["confidence, highest first", ({ prediction }) => (prediction ? -prediction.confidence : -Infinity)],
  given: ["the order in which they came", () => 0],
});

/** An image of the list, and its row, which stays the same element. */
class Row {
  /** @param {File} file @param {(file: File) => void} onSelect */
  constructor(file, onSelect) {
    this.file = file;
    this.url = URL.createObjectURL(file);
    const open = html("button", { type: "button", "data-key": this.url, onclick: () => onSelect(file) }, file.name);
    this.element = html("tr", {}, html("td", {}, html("div", { class: "row" }, html("img", { src: this.url, alt: "", loading: "lazy" }), open)));
    this.say("…");
  }

  /** Show a sentence in the place of an answer. @param {string} sentence */
  say(sentence) {
    this.prediction = null;
    this.#fill(html("td", { colspan: 5, class: "muted" }, sentence));
  }

  /** @param {any} prediction */
  show(prediction) {
    this.prediction = prediction;
    this.#fill(
      html("td", { "data-label": "Label" }, prediction.label),
      html("td", { class: "number", "data-label": "Confidence" }, percent(prediction.confidence)),
      html("td", { class: "number", "data-label": "Doubt" }, short(prediction.predictive_entropy)),
      html("td", { class: "number", "data-label": "Typicality" }, prediction.typicality === null ? "–" : percent(prediction.typicality)),
      html("td", {}, html("span", { class: `chip ${kindOf(prediction)}` }, verdictWord(prediction))),
    );
  }

  #fill(/** @type {Node[]} */ ...cells) {
    for (const former of [...this.element.children].slice(1)) former.remove();
    this.element.append(...cells);
  }
}

export class ImageList {
  /** @param {(file: File) => void} onSelect */
  constructor(onSelect) {
    this.onSelect = onSelect;
    /** @type {Row[]} */
    this.rows = [];
    this.run = new AbortController(); // through the images; a newer one ends it
    this.panel = byId("list");
    this.order = byId("sort");
    this.order.append(...Object.entries(ORDERS).map(([name, [text]]) => html("option", { value: name }, text)));
    this.order.addEventListener("change", () => this.#sort());
  }

  /** Ask about other images; one alone is no list. @param {File[]} files @param {Query} query */
  start(files, query) {
    for (const { url } of this.rows) URL.revokeObjectURL(url);
    this.rows = files.length > 1 ? files.map((file) => new Row(file, this.onSelect)) : [];
    this.panel.hidden = this.rows.length === 0;
    this.#sort();
    void this.#answer(query, 0);
  }

  /** Mark the row of the file that is asked about, if it has one. @param {File | null} file */
  select(file) {
    for (const row of this.rows) row.element.classList.toggle("selected", row.file === file);
  }

  /** Ask about the same images with other settings, once these stay as they are. @param {Query} query */
  askAgain(query) {
    for (const row of this.rows) row.say("…");
    void this.#answer(query, SETTLING_MILLISECONDS);
  }

  async #answer(/** @type {Query} */ query, /** @type {number} */ delay) {
    this.run.abort();
    this.run = new AbortController();
    const { signal } = this.run;
    const waiting = [...this.rows];
    let answered = 0;
    this.#showProgress(answered);
    this.panel.setAttribute("aria-busy", "true");
    await pause(delay, signal);
    const answerSome = async () => {
      for (let row = waiting.shift(); row && !signal.aborted; row = waiting.shift()) {
        await answerRow(row, query, signal);
        if (!signal.aborted && ++answered % AT_ONCE === 0) this.#showProgress(answered);
      }
    };
    await Promise.all(Array.from({ length: AT_ONCE }, answerSome));
    if (signal.aborted) return;
    this.#showProgress(answered);
    this.#sort();
    this.panel.setAttribute("aria-busy", "false");
  }

  #showProgress(/** @type {number} */ answered) {
    const total = this.rows.length;
    byId("list-progress").textContent = answered < total ? `${answered} of ${total} answered` : `${total} images`;
  }

  #sort() {
    const [, key] = ORDERS[this.order.value];
    const sorted = [...this.rows].sort((one, other) => key(one) - key(other) || 0);
    renew(byId("rows"), ...sorted.map(({ element }) => element));
  }
}

/** Put an answer into a row, or why there is none. @param {Row} row @param {Query} query @param {AbortSignal} signal */
async function answerRow(row, query, signal) {
  const send = async () => postImage("uncertainty", query, await readFile(row.file), signal);
  const refuse = (/** @type {unknown} */ error) => row.say(sentenceOf(error));
  try {
    const { predictions } = await untilAnswered(send, { signal, onPause: refuse });
    if (!signal.aborted) row.show(predictions[0]);
  } catch (error) {
    if (!signal.aborted) refuse(error);
  }
}
