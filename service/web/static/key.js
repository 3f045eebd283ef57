/** The API key of this tab, which a person is asked for once the service wants one. */

import { html } from "./dom.js";

const STORED = "dropserve-key"; // in sessionStorage: for this tab, until it is closed
const KEY = /^[\x21-\x7e]+$/; // what a header can carry
const NO_KEY = "A key has only letters from A to Z, digits and signs such as “-”, without accents or spaces; copy it anew.";

/** @type {Promise<boolean> | null} what comes of the question that is open */
let asking = null;
let isDeclined = false;

/** Return the key of this tab; none if no header can carry it. @returns {string | null} */
function storedKey() {
  const key = sessionStorage.getItem(STORED);
  return key !== null && KEY.test(key) ? key : null;
}

/** Whether the service wants a key, and has got one. */
export const hasKey = () => storedKey() !== null;

/** Return the headers that carry the key. @returns {Record<string, string>} */
export function keyHeaders() {
  const key = storedKey();
  return key === null ? {} : { Authorization: `Bearer ${key}` };
}

/**
 * Ask for a key after a request was refused; several requests share one question.
 * @param {string} sentence what the service says
 * @param {Record<string, string>} sent the headers of the request that was refused
 * @returns {Promise<boolean>} whether there is another key to try
 */
export function askForKey(sentence, sent) {
  if (asking === null && sent.Authorization !== keyHeaders().Authorization) return Promise.resolve(true); // it was given meanwhile
  if (isDeclined) return Promise.resolve(false);
  asking ??= ask(sentence).finally(() => (asking = null));
  return asking;
}

/** @param {string} sentence @returns {Promise<boolean>} */
function ask(sentence) {
  sessionStorage.removeItem(STORED);
  const input = html("input", { id: "api-key", type: "password", autocomplete: "off", spellcheck: "false", required: true, autofocus: true });
  const key = () => input.value.trim();
  input.addEventListener("input", () => input.setCustomValidity(KEY.test(key()) ? "" : NO_KEY));
  const form = html(
    "form",
    { class: "stack" },
    html("h2", { id: "api-key-title" }, "A key is needed"),
    html("p", {}, sentence),
    html("label", { for: "api-key" }, "Key"),
    input,
    html("p", { class: "muted small" }, "It stays in this tab, and is forgotten when the tab is closed."),
    html("div", { class: "row" }, html("button", { type: "submit", class: "primary" }, "Use the key"), html("button", { type: "button", onclick: () => dialog.close() }, "Go on without")),
  );
  const dialog = html("dialog", { "aria-labelledby": "api-key-title" }, form);
  form.addEventListener("submit", (/** @type {SubmitEvent} */ event) => {
    event.preventDefault();
    sessionStorage.setItem(STORED, key());
    dialog.close();
  });
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      dialog.remove();
      isDeclined = !hasKey();
      resolve(!isDeclined);
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}
