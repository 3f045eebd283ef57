/** A client of the service that this page came from. Every address is relative to `ROOT`. */

import { askForKey, keyHeaders } from "./key.js";

/** The address of the service, which may stand below a path prefix of a proxy. */
export const ROOT = new URL("../../", import.meta.url);

/** A response that is an error, or no response; `message` is a sentence for the reader. */
export class ServiceError extends Error {
  /** @param {string} message @param {string} code @param {number} status 0: no response came */
  constructor(message, code, status) {
    super(message);
    this.code = code;
    this.status = status;
  }
}

/** Return what to tell the reader of an error. @param {unknown} error */
export const sentenceOf = (error) => (error instanceof Error ? error.message : String(error));

/**
 * Return the absolute address of a route.
 * @param {string} path without a leading slash
 * @param {Record<string, string | number | boolean | null | undefined>} [query] null leaves one out
 */
export function address(path, query = {}) {
  const url = new URL(path, ROOT);
  for (const [name, value] of Object.entries(query)) {
    if (value !== null && value !== undefined && value !== "") url.searchParams.set(name, String(value));
  }
  return url;
}

/**
 * Send a request and return the JSON of its response.
 * @param {URL} url
 * @param {RequestInit} [options]
 * @returns {Promise<any>}
 * @throws {ServiceError} and AbortError when `options.signal` is aborted
 */
export async function fetchJson(url, options = {}) {
  const response = await send(url, options);
  const body = await jsonOf(response);
  if (!response.ok || body === null) throw errorOf(response, body);
  return body;
}

/**
 * Ask about one image, in a form as the requests that the page shows. Return the JSON of the response.
 * @param {string} path
 * @param {Record<string, any>} query
 * @param {Blob} image
 * @throws {ServiceError}
 */
export function postImage(path, query, image) {
  const body = new FormData();
  body.append("file", image);
  return fetchJson(address(path, query), { method: "POST", body });
}

/**
 * Return a file of the service: an image, or a report.
 * @param {URL | string} url
 * @returns {Promise<Blob>}
 * @throws {ServiceError}
 */
export async function fetchBlob(url) {
  const response = await send(url, {});
  if (!response.ok) throw errorOf(response, await jsonOf(response));
  return response.blob();
}

/**
 * Send a request with the key; where the service wants another, ask for one and send it again.
 * @param {URL | string} url
 * @param {RequestInit} options
 * @returns {Promise<Response>}
 */
async function send(url, options) {
  const key = keyHeaders();
  let response;
  try {
    response = await fetch(url, { ...options, headers: { .../** @type {Record<string, string>} */ (options.headers), ...key } });
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new ServiceError("The service does not answer. The page goes on trying.", "unreachable", 0);
  }
  if (response.status !== 401) return response;
  const body = await jsonOf(response.clone());
  if (!(await askForKey(body?.error ?? "", key))) return response;
  const { signal, ...rest } = options; // its time was over while a person looked for the key
  return send(url, signal?.aborted ? rest : options);
}

/** @param {Response} response @returns {Promise<any>} its JSON; null if it has none, but a proxy's own page, say */
const jsonOf = (response) => response.json().catch(() => null);

/** @param {Response} response @param {any} body */
const errorOf = (response, body) => new ServiceError(body?.error ?? `The service answered with status ${response.status}.`, body?.code ?? "", response.status);

/** Return `GET /models`. */
export const getModels = () => fetchJson(address("models"));

/** Return `GET /models/NAME`. @param {string} name @param {string} [version] */
export const getModel = (name, version) => fetchJson(address(`models/${encodeURIComponent(name)}`, { version }));
