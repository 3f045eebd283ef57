// Gives names to the viewers' controls that have none, for people who use a screen reader.

/** @type {Record<string, (element: Element) => Record<string, string>>} by selector, its attributes */
const MISSING = {
  "#servers": () => ({ "aria-label": "Server" }),
  "tr[data-param-name] select": (element) => ({
    "aria-label": element.closest("tr")?.getAttribute("data-param-name") ?? "",
  }),
  "textarea.body-param__text": () => ({ "aria-label": "Request body" }),
  ".copy-to-clipboard button": () => ({ "aria-label": "Copy" }),
  "pre.microlight": () => ({ tabindex: "0" }), // it scrolls, also by the keyboard
  "select.dropdown-select": () => ({ "aria-label": "Content type" }),
};

/** Name what is in a place now, and what is added later. @param {Node} place */
export function nameControls(place) {
  const name = () => {
    for (const [selector, attributes] of Object.entries(MISSING)) {
      for (const element of document.querySelectorAll(selector)) {
        for (const [key, value] of Object.entries(attributes(element))) {
          if (!element.hasAttribute(key)) element.setAttribute(key, value);
        }
      }
    }
  };
  new MutationObserver(name).observe(place, { childList: true, subtree: true });
}
