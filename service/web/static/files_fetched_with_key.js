/** Shows images of the service and links to its pages, also where these need the key of this tab. */

import { fetchBlob, sentenceOf } from "./api.js";
import { untilAnswered } from "./asking.js";
import { html, say } from "./dom.js";
import { hasKey } from "./key.js";

const POLICY = `<!doctype html><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">`;

/**
 * Return where an element can load an image from. An element sends no key, so with one it is a copy.
 * @param {URL | string} url
 * @returns {Promise<string>}
 */
const imageAddress = async (url) => (hasKey() ? URL.createObjectURL(await fetchBlob(url)) : String(url));

/** Build an image element. @param {URL} url @param {import("./dom.js").Attributes} attributes @returns {HTMLImageElement} */
export function serviceImage(url, attributes) {
  const image = html("img", attributes);
  const show = (/** @type {string} */ source) => (image.src = source);
  imageAddress(url).then(show, () => show(String(url)));
  image.addEventListener("load", () => URL.revokeObjectURL(image.src), { once: true });
  return image;
}

/**
 * Build a button to a page of the service; with a key the page is saved, since no link sends one.
 * @param {URL} url @param {string} file @param {string} text
 */
export function serviceLink(url, file, text) {
  const notice = html("span", { class: "notice", role: "alert", hidden: true });
  const refuse = (/** @type {unknown} */ error) => say(notice, sentenceOf(error));
  const onclick = (/** @type {Event} */ event) => {
    if (!hasKey()) return;
    event.preventDefault();
    untilAnswered(() => fetchBlob(url), { onPause: refuse }).then((page) => {
      say(notice, "");
      save(page, file);
    }, refuse);
  };
  return html("span", { class: "row" }, html("a", { class: "button", href: String(url), onclick }, text), notice);
}

/** Save a page. The copy keeps what the service's headers forbid: a report may come from anybody. @param {Blob} page @param {string} file */
function save(page, file) {
  const address = URL.createObjectURL(new Blob([POLICY, page], { type: "text/html" }));
  html("a", { href: address, download: file }).click();
  URL.revokeObjectURL(address);
}
