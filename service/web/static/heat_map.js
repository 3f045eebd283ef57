/** Shows what an answer hangs on: the image under the drop of the label's probability, place by place. */

import { postImage, sentenceOf } from "./api.js";
import { Question } from "./asking.js";
import { byId, say } from "./dom.js";
import { percent } from "./format.js";

const SIDE = 448; // pixels of the picture's longer side, at most twice as many as shown

/** @typedef {{image: Blob, query: Record<string, any>}} Explained an image that was answered, and the query of POST /occlusion */

export class HeatMap {
  constructor() {
    /** @type {Question<Explained, {picture: ImageBitmap, map: any}> | null} */
    this.question = null;
    this.button = byId("show-heat-map");
    this.button.addEventListener("click", () => {
      this.button.disabled = true;
      void this.question?.ask();
    });
  }

  /** Offer the map of an image that was answered, or none; the one of an earlier image is hidden. @param {Explained | null} explained */
  offer(explained) {
    this.question?.end();
    this.question = explained && new Question(explained, mapOf, (answer) => this.#show(answer), (error) => this.#say(sentenceOf(error)));
    byId("heat-map").hidden = explained === null;
    byId("heat-figure").hidden = true;
    this.#say("");
  }

  #say(/** @type {string} */ sentence) {
    this.button.disabled = false;
    say(byId("heat-notice"), sentence);
  }

  #show(/** @type {{picture: ImageBitmap, map: any}} */ { picture, map }) {
    this.#draw(picture, map);
    this.#say("");
  }

  #draw(/** @type {ImageBitmap} */ picture, /** @type {any} */ map) {
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
    const label = `\u2068“${map.label}”\u2069`; // isolated, as it may be written from right to left
    const effect =
      drop > 0.005
        ? `Covering the orange ones lowers the probability of ${label}, from ${percent(map.confidence)} to as little as ${percent(Math.max(map.confidence - drop, 0))}; covering the blue ones raises it.`
        : `None of them alone lowers the probability of ${label}, ${percent(map.confidence)}, by more than ${percent(Math.max(drop, 0))}.`;
    const caption = `Each place was covered in turn. ${effect} These are probabilities of the whole network, with no part switched off, and so differ a little from the average of its variants above.`;
    byId("heat-caption").textContent = caption;
    canvas.setAttribute("aria-label", caption);
    byId("heat-figure").hidden = false;
  }
}

/** @param {Explained} explained @param {AbortSignal} signal */
async function mapOf({ image, query }, signal) {
  const picture = await decode(image);
  return { picture, map: await postImage("occlusion", query, image, signal) };
}

/** @param {Blob} image @returns {Promise<ImageBitmap>} */
async function decode(image) {
  try {
    return await createImageBitmap(image);
  } catch {
    throw new Error("This browser cannot show this kind of image, so there is no map of it; a JPEG or PNG would have one.");
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
