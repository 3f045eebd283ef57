/** Builds elements of HTML and SVG. Text is always set as text, never parsed as HTML. */

const SVG = "http://www.w3.org/2000/svg";

/**
 * @typedef {string | number | Node | null | undefined | false} Child
 * @typedef {Record<string, string | number | boolean | null | undefined | EventListener>} Attributes
 */

/**
 * Build an HTML element. `on…` attributes are listeners; null, undefined and false leave one out.
 * @param {string} tag
 * @param {Attributes} [attributes]
 * @param {...Child} children
 * @returns {any}
 */
export function html(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/**
 * Build an SVG element, as `html` does.
 * @param {string} tag
 * @param {Attributes} [attributes]
 * @param {...Child} children
 * @returns {any}
 */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

/**
 * Return the element of the page with this id.
 * @param {string} id
 * @returns {any}
 */
export function byId(id) {
  const element = document.getElementById(id);
  if (!element) throw new Error(`The page has no element #${id}.`);
  return element;
}

/** Show a sentence in a notice; hide it if there is none. The same is not said again. @param {HTMLElement} notice @param {string} sentence */
export function say(notice, sentence) {
  if (notice.textContent !== sentence) notice.textContent = sentence;
  notice.hidden = sentence === "";
}

/** @param {Element} element @param {Attributes} attributes @param {Child[]} children */
function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...present(children));
  return element;
}

/** @param {Child[]} children @returns {(string | Node)[]} */
const present = (children) => children.filter((child) => child !== null && child !== undefined && child !== false).map((child) => (typeof child === "number" ? String(child) : child));

/** Build a name that strangers have chosen: written from right to left, it moves nothing beside it. @param {string} name */
export const isolated = (name) => html("bdi", {}, name);

/** Build a list of such names in a sentence. @param {string[]} names @returns {(string | Node)[]} */
export const listed = (names) => names.flatMap((name, at) => [at > 0 ? ", " : "", isolated(name)]);

/**
 * Put a table that may be wider than the page into a part that scrolls, also by keyboard.
 * @param {string} label of the part, for screen readers
 * @param {Node} table
 */
export const scrolling = (label, table) => html("div", { class: "table-scroll", role: "region", tabindex: 0, "aria-label": label, "data-key": label }, table);

/**
 * Replace the children of an element. Where one with a `data-key` has the focus or is scrolled, the new one of
 * the same key takes that over.
 * @param {HTMLElement} place
 * @param {...Child} children
 */
export function renew(place, ...children) {
  const keyed = () => [.../** @type {NodeListOf<HTMLElement>} */ (place.querySelectorAll("[data-key]"))];
  const focused = keyed().find((each) => each === document.activeElement)?.dataset.key;
  const scrolled = new Map(keyed().map(({ dataset, scrollLeft }) => [dataset.key, scrollLeft]));
  place.replaceChildren(...present(children));
  for (const each of keyed()) {
    each.scrollLeft = scrolled.get(each.dataset.key) ?? 0;
    if (each.dataset.key === focused) each.focus({ preventScroll: true });
  }
}
