/** How a model's own images look: how much of the frame they fill, and on what background. */

/** @typedef {{fill: number, isDark: boolean}} Frame fill: the larger side of what is drawn, as a share of the frame */

/** @type {Frame} */
export const DEFAULT_FRAME = { fill: 1, isDark: true };
const INK = 0.25; // how far from the background a pixel counts as drawn

/**
 * Measure the images; those that cannot be read are left out.
 * @param {Blob[]} images with the size of the model's input
 * @returns {Promise<Frame>}
 */
export async function measureFrame(images) {
  const frames = (await Promise.all(images.map(measureOne))).filter((frame) => frame !== null);
  if (frames.length === 0) return DEFAULT_FRAME;
  const fills = frames.map(({ fill }) => fill).sort((one, other) => one - other);
  return { fill: fills[Math.floor(fills.length / 2)], isDark: frames.filter(({ isDark }) => isDark).length * 2 >= frames.length };
}

/** @param {Blob} image @returns {Promise<Frame | null>} */
async function measureOne(image) {
  const picture = await createImageBitmap(image).catch(() => null);
  if (!picture) return null;
  const canvas = document.createElement("canvas");
  const [width, height] = (([canvas.width, canvas.height] = [picture.width, picture.height]));
  const context = canvas.getContext("2d");
  if (!context) return null;
  context.drawImage(picture, 0, 0);
  const { data } = context.getImageData(0, 0, width, height);
  const grey = (/** @type {number} */ x, /** @type {number} */ y) => data[4 * (y * width + x) + 1] / 255;
  const corners = [grey(0, 0), grey(width - 1, 0), grey(0, height - 1), grey(width - 1, height - 1)];
  const isDark = corners.filter((value) => value < 0.5).length >= 2;
  let [left, top, right, bottom] = [width, height, -1, -1];
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      if (Math.abs(grey(x, y) - (isDark ? 0 : 1)) < INK) continue;
      [left, top, right, bottom] = [Math.min(left, x), Math.min(top, y), Math.max(right, x), Math.max(bottom, y)];
    }
  }
  return right < 0 ? null : { fill: Math.max((right - left + 1) / width, (bottom - top + 1) / height), isDark };
}
