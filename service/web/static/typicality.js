/** Draws the typicality of an image on its scale, beside the limit below which it counts as unusual. */

import { html, svg } from "./dom.js";
import { percent } from "./format.js";

const LEAST = 0.001;
const RARE = 0.05; // up to here images are counted, not given in per cent

/**
 * @param {number} typicality a p-value, 0..1
 * @param {number} maxFalseAlarm at most this counts as unusual
 * @param {number | null} images how many validation images it is measured by; null if that is not known
 */
export function typicalityScale(typicality, maxFalseAlarm, images) {
  const least = images === null ? LEAST : Math.max(LEAST, 1 / (images + 1)); // the smallest value that there is
  const at = (/** @type {number} */ share) => `${(100 * (1 - Math.log(Math.max(share, least)) / Math.log(least))).toFixed(2)}%`;
  return html(
    "div",
    {},
    html("h3", {}, "Is it an image like those that the model knows?"),
    svg(
      "svg",
      { class: "scale", role: "img", "aria-label": `Typicality ${percent(typicality)}` },
      svg("rect", { class: "track", y: 14, width: "100%", height: 10, rx: 5 }),
      svg("rect", { class: "alarm", y: 14, width: at(maxFalseAlarm), height: 10, rx: 5 }),
      svg("svg", { x: at(typicality), overflow: "visible" }, svg("path", { class: "mark", d: "M0 12 L-6 2 L6 2 Z" }), svg("rect", { class: "mark", x: -1, y: 10, width: 2, height: 16 })),
      svg("text", { x: 0, y: 40 }, "unlike them: no answer"),
      svg("text", { x: "100%", y: 40, "text-anchor": "end" }, "ordinary"),
    ),
    html("p", { class: "small" }, images === null ? belongingByShare(typicality, maxFalseAlarm) : belonging(typicality, maxFalseAlarm, images)),
  );
}

function belongingByShare(/** @type {number} */ typicality, /** @type {number} */ maxFalseAlarm) {
  const share = `${percent(typicality)} of such images are as strange`;
  if (typicality <= maxFalseAlarm) return `No: only ${share} as this one.`;
  if (typicality <= RARE) return `Just about: only ${share} as this one.`;
  return `Yes, an ordinary one: ${share} or stranger.`;
}

function belonging(/** @type {number} */ typicality, /** @type {number} */ maxFalseAlarm, /** @type {number} */ images) {
  const stranger = Math.max(Math.round(typicality * (images + 1)) - 1, 0); // the image itself counts as one
  const known = `of the ${images} images that it was tested on`;
  const count = stranger === 0 ? `none ${known} is` : `only ${stranger} ${known} ${stranger === 1 ? "is" : "are"}`;
  if (typicality <= maxFalseAlarm) return `No: ${count} as strange as this one.`;
  if (typicality <= RARE) return `Just about: ${count} as strange as this one.`;
  return `Yes, an ordinary one: ${stranger} ${known} are as strange or stranger.`;
}
