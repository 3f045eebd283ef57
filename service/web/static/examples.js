/** Images to try: some of the model's own validation images, a blank and noise. */

import { address, fetchBlob, fetchJson } from "./api.js";
import { untilAnswered } from "./asking.js";
import { html } from "./dom.js";

/**
 * @typedef {{name: string, caption: string, load: () => Promise<Blob>, thumbnail: string}} Example
 * @typedef {{channels: number, height: number, width: number}} Input
 */

let noises = 0;

/**
 * Return the model's own images, with their true classes; none of an older bundle. They are loaded at once, since
 * the version that they belong to may be replaced while the page is open.
 * @param {string} model
 * @param {AbortSignal} signal
 * @returns {Promise<{label: string, image: Blob}[]>}
 */
export async function ownExamples(model, signal) {
  try {
    const url = address(`models/${encodeURIComponent(model)}/examples`);
    const { examples } = await untilAnswered(() => fetchJson(url, { signal }), { signal });
    return await Promise.all(
      examples.map(async (/** @type {any} */ { label, href }) => ({ label, image: await untilAnswered(() => fetchBlob(new URL(href, url), signal), { signal }) })),
    );
  } catch {
    return [];
  }
}

/**
 * Return all examples of a model.
 * @param {{label: string, image: Blob}[]} own
 * @param {Input} input
 * @returns {Example[]}
 */
export function examples(own, input) {
  const pictures = own.map(({ label, image }, place) => ({ name: `${label}-${place + 1}.webp`, caption: label, thumbnail: URL.createObjectURL(image), load: () => Promise.resolve(image) }));
  return [
    ...pictures,
    { name: "blank.png", caption: "Blank", thumbnail: paint(input, () => 0).toDataURL(), load: () => toBlob(paint(input, () => 0)) },
    { name: "noise.png", caption: "Noise", thumbnail: paint(input, random(0)).toDataURL(), load: () => toBlob(paint(input, random(noises++))) },
  ];
}

/**
 * Build the buttons of the examples.
 * @param {Example[]} all
 * @param {(example: Example) => void} onChoose
 */
export const exampleButtons = (all, onChoose) =>
  all.map((example) =>
    html(
      "button",
      { type: "button", title: example.caption, "data-example": example.name, "aria-pressed": "false", onclick: () => onChoose(example) },
      html("img", { class: "pixelated", src: example.thumbnail, alt: "", loading: "lazy" }),
      html("span", {}, example.caption),
    ),
  );

function paint(/** @type {Input} */ { channels, height, width }, /** @type {() => number} */ value) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  const image = new ImageData(width, height);
  for (let place = 0; place < image.data.length; place += 4) {
    const grey = 255 * value();
    for (let channel = 0; channel < 3; channel++) image.data[place + channel] = channels === 1 ? grey : 255 * value();
    image.data[place + 3] = 255;
  }
  canvas.getContext("2d")?.putImageData(image, 0, 0);
  return canvas;
}

/** @param {HTMLCanvasElement} canvas @returns {Promise<Blob>} */
const toBlob = (canvas) => new Promise((resolve, reject) => canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("The image cannot be encoded."))), "image/png"));

/** A generator of numbers in 0..1, the same for the same seed (mulberry32). @param {number} seed */
function random(seed) {
  let state = seed + 1;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}
