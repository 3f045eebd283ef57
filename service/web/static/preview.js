/** Shows the file that is asked about, where the browser can. */

import { byId } from "./dom.js";

const SMALL = 64; // pixels of a side, up to which they are shown as squares

export class Preview {
  constructor() {
    this.image = byId("preview");
    this.image.addEventListener("load", () => this.image.classList.toggle("pixelated", this.image.naturalWidth <= SMALL));
    this.image.addEventListener("error", () => this.#say("This browser cannot show the file. Drop or paste another one here.", true));
  }

  /** Show a file, or that there is none. @param {File | null} file */
  show(file) {
    URL.revokeObjectURL(this.image.src);
    if (file) this.image.src = URL.createObjectURL(file);
    else this.image.removeAttribute("src");
    this.#say(file ? "Drop or paste another one here." : "Drop images here, paste one, or choose:", file === null);
  }

  #say(/** @type {string} */ hint, /** @type {boolean} */ isHidden) {
    byId("drop-hint").textContent = hint;
    this.image.hidden = isHidden;
  }
}
