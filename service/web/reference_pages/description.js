// Fetches the description of the API for a page beside it. Knows no viewer.

import { nameControls } from "./accessible_names.js";

/**
 * Fetch openapi.json, with the address below which this page lies as its only server: requests
 * then reach the service under any path prefix, also one that the service was not told of.
 *
 * @returns {Promise<Record<string, unknown>>} the OpenAPI description
 */
async function fetchDescription() {
  const url = new URL("openapi.json", location.href).href;
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url} was answered with status ${response.status}.`);
  const server = new URL(".", url).href.replace(/\/$/, "");
  return { ...(await response.json()), servers: [{ url: server }] };
}

/**
 * Fetch the description and show it in the page; say so where that fails.
 *
 * @param {(description: Record<string, unknown>, place: HTMLElement) => void} show
 */
export async function showDescription(show) {
  const place = /** @type {HTMLElement} */ (document.getElementById("reference"));
  nameControls(place);
  try {
    show(await fetchDescription(), place);
  } catch (error) {
    place.textContent = `The routes cannot be shown (${error.message}) Reload the page.`;
  }
}
