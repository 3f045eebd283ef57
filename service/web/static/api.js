/** A client of the service that this page came from. Every address is relative to `ROOT`. */

import { askForKey, keyHeaders } from "./key.js";

/** The address of the service, which may stand below a path prefix of a proxy. */
export const ROOT = new URL("../../", import.meta.url);

const PROMPT_MILLISECONDS = 10_000; // for what the service has at hand
const PATIENT_MILLISECONDS = 120_000; // for what takes long to send or to compute: a slow line needs that for a photograph

/** A response that is an error, or no response; `message` is a sentence for the reader. */
export class ServiceError extends Error {
  /** @param {string} message @param {string} code @param {number} status 0: no response came @param {number} [retryAfterSeconds] 0: the service does not say when to ask again */
  constructor(message, code, status, retryAfterSeconds = 0) {
    super(message);
    this.code = code;
    this.status = status;
    this.retryAfterSeconds = retryAfterSeconds;
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
 * @typedef {{method?: string, body?: FormData, signal?: AbortSignal}} Options of a request
 */

/**
 * Send a request and return the JSON of its response.
 * @param {URL} url
 * @param {Options} [options]
 * @param {number} [milliseconds] that it may take
 * @returns {Promise<any>}
 * @throws {ServiceError} and AbortError when `options.signal` is aborted
 */
export async function fetchJson(url, options = {}, milliseconds = PROMPT_MILLISECONDS) {
  const response = await send(url, options, milliseconds);
  const body = await jsonOf(response, options.signal);
  if (body === null) throw new ServiceError("What has answered is not the service, but a proxy or a login page before it, say; reload the page.", "", response.status);
  return body;
}

/**
 * Ask about one image, in a form as the requests that the page shows. Return the JSON of the response.
 * @param {string} path
 * @param {Record<string, any>} query
 * @param {Blob} image
 * @param {AbortSignal} signal
 * @throws {ServiceError} and AbortError
 */
export function postImage(path, query, image, signal) {
  const body = new FormData();
  body.append("file", image);
  return fetchJson(address(path, query), { method: "POST", body, signal }, PATIENT_MILLISECONDS);
}

/**
 * Return a file of the service: an image, or a report.
 * @param {URL | string} url
 * @param {AbortSignal} [signal]
 * @returns {Promise<Blob>}
 * @throws {ServiceError} and AbortError
 */
export async function fetchBlob(url, signal) {
  const response = await send(url, { signal }, PATIENT_MILLISECONDS);
  try {
    return await response.blob();
  } catch {
    throw silence(signal);
  }
}

/**
 * Send a request with the key; where the service wants another, ask for one and send it again.
 * @param {URL | string} url
 * @param {Options} options
 * @param {number} milliseconds that it may take, without the time in which a person looks for a key
 * @returns {Promise<Response>} one that is no error
 */
async function send(url, options, milliseconds) {
  const key = keyHeaders();
  const timeout = AbortSignal.timeout(milliseconds);
  const signal = options.signal ? AbortSignal.any([options.signal, timeout]) : timeout;
  let response;
  try {
    response = await fetch(url, { ...options, signal, headers: key });
  } catch {
    throw silence(options.signal);
  }
  if (response.ok) return response;
  const error = errorOf(response, await jsonOf(response, options.signal));
  if (error.status === 401 && (await askForKey(error.message, key))) return send(url, options, milliseconds);
  throw error;
}

/**
 * Return the JSON of a response; null if it has none, but a proxy's own page, say.
 * @param {Response} response
 * @param {AbortSignal} [signal]
 * @returns {Promise<any>}
 */
async function jsonOf(response, signal) {
  try {
    return await response.json();
  } catch (error) {
    if (error instanceof SyntaxError) return null;
    throw silence(signal);
  }
}

/** Return the error of a response that does not come, or not as a whole. @param {AbortSignal} [signal] @throws AbortError where the request was given up */
function silence(signal) {
  signal?.throwIfAborted();
  return new ServiceError("The service does not answer. The page goes on trying.", "unreachable", 0);
}

/** @param {Response} response @param {any} body */
function errorOf(response, body) {
  const seconds = Number(response.headers.get("Retry-After")) || 0; // a proxy may write a date, which is not a number
  return new ServiceError(body?.error ?? `The service answered with status ${response.status}.`, body?.code ?? "", response.status, seconds);
}

/** Return `GET /models`. */
export const getModels = () => fetchJson(address("models"));

/** Return `GET /models/NAME`. @param {string} name @param {string} [version] */
export const getModel = (name, version) => fetchJson(address(`models/${encodeURIComponent(name)}`, { version }), {}, PATIENT_MILLISECONDS);
