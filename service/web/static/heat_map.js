/** Shows what an answer hangs on: the image under the drop of the label's probability, place by place. */

import { address, fetchJson } from "./api.js";
import { byId } from "./dom.js";
import { percent } from "./format.js";

const SIDE = 448; // pixels of the picture's longer side, at most twice as many as shown

export class HeatMap {
  /** @param {(message: string) => void} onError */
  constructor(onError) {
    this.onError = onError;
    /** @type {{blob: Blob, query: Record<string, any>} | null} */
    this.question = null;
    byId("show-heat-map").addEventListener("click", () => void this.#show());
  }

  /** Offer the map of an image; the one of an earlier image is hidden. @param {Blob} blob @param {Record<string, any>} query */
  offer(blob, query) {
    this.question = { blob, query };
    byId("heat-map").hidden = false;
    byId("heat-figure").hidden = true;
  }

  async #show() {
    const { question } = this;
    if (!question) return;
    const button = byId("show-heat-map");
    button.disabled = true;
    try {
      const map = await fetchJson(address("occlusion", question.query), { method: "POST", body: question.blob, headers: { "Content-Type": question.blob.type } });
      if (question === this.question) await this.#draw(question.blob, map);
    } catch (error) {
      this.onError(error instanceof Error ? error.message : String(error));
    } finally {
      button.disabled = false;
    }
  }

  async #draw(/** @type {Blob} */ blob, /** @type {any} */ map) {
    const picture = await createImageBitmap(blob);
    const canvas = byId("heat-canvas");
    const scale = SIDE / Math.max(picture.width, picture.height);
    [canvas.width, canvas.height] = [Math.round(picture.width * scale), Math.round(picture.height * scale)];
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = scale < 1;
    context.filter = "grayscale(1) brightness(.75)";
    context.drawImage(picture, 0, 0, canvas.width, canvas.height);
    context.filter = "none";
    const most = Math.max(...map.importance.flat().map(Math.abs), 1e-9);
    cells(map).forEach(({ x, y, width, height, value }) => {
      context.fillStyle = value > 0 ? `rgb(255 122 26 / ${(0.75 * value) / most})` : `rgb(66 153 255 / ${(0.75 * -value) / most})`;
      context.fillRect(x * canvas.width, y * canvas.height, width * canvas.width, height * canvas.height);
    });
    const drop = Math.max(...map.importance.flat());
    const caption =
      drop > 0.005
        ? `Each place was covered in turn. Covering the orange ones lowers the probability of “${map.label}”, from ${percent(map.confidence)} to as little as ${percent(Math.max(map.confidence - drop, 0))}; covering the blue ones raises it.`
        : `Each place was covered in turn, and none of them alone lowers the probability of “${map.label}” by more than ${percent(Math.max(drop, 0))}.`;
    byId("heat-caption").textContent = caption;
    canvas.setAttribute("aria-label", caption);
    byId("heat-figure").hidden = false;
  }
}

/** Return the places of the map as boxes of the picture, in shares of its sides. @param {any} map */
function cells({ importance, region }) {
  const [rows, columns] = [importance.length, importance[0].length];
  const [width, height] = [region.width / columns, region.height / rows];
  return importance.flatMap((/** @type {number[]} */ values, /** @type {number} */ row) =>
    values.map((value, column) => ({ x: region.left + column * width, y: region.top + row * height, width, height, value })),
  );
}
