/** The page Models: asks which versions serve, again and again, and shows what is known of them. */

import { ServiceError, address, fetchJson, getModel, getModels, sentenceOf } from "./api.js";
import { byId, html, renew, say } from "./dom.js";
import { counted } from "./format.js";
import { Poll } from "./poll.js";
import { titleOf, versionDetails } from "./version_details.js";
import { keyOf, versionRows } from "./version_table.js";

/** @typedef {import("./version_figures.js").Entry} Entry */

/** @type {Entry[]} */
let entries = [];
/** @type {Map<string, Promise<any>>} manifests by version and time of publishing */
const manifests = new Map();
let shownText = "";
let shownDetails = "";

/** Return the key in the page's address, which no key is encoded for. */
const selectedKey = () => location.hash.slice(1);

/** Return the response of GET /models, and a sentence on why there is none to show. */
async function listing() {
  const models = await getModels();
  return { models, sentence: models.models.length === 0 ? await whyEmpty() : "" };
}

/** @param {unknown} error */
function showSilence(error) {
  say(byId("notice"), sentenceOf(error));
  byId("main").classList.add("stale");
}

/** Return why no model serves. */
async function whyEmpty() {
  try {
    await fetchJson(address("health/ready"));
  } catch (error) {
    if (error instanceof ServiceError && error.status === 503) return error.message;
    throw error;
  }
  return "";
}

/** Show an answer, and what is still lacking of the details. @param {{models: any, sentence: string}} answer */
function show({ models, sentence }) {
  say(byId("notice"), sentence);
  byId("main").classList.remove("stale");
  const text = JSON.stringify(models);
  if (text !== shownText) {
    shownText = text;
    showModels(models);
  }
  void showDetails();
}

/** @param {any} models the response of GET /models */
function showModels(models) {
  entries = models.models.flatMap((/** @type {any} */ model) => model.versions.map((/** @type {any} */ version) => ({ name: model.name, model, version })));
  const counts = [counted(models.models.length, "model"), counted(entries.length, "version"), models.refused.length > 0 && `${models.refused.length} refused`, models.unloaded.length > 0 && `unloaded: ${models.unloaded.join(", ")}`];
  byId("status").textContent = `${counts.filter((part) => part).join(" · ")}. Updated by itself.`;
  byId("overview").hidden = entries.length === 0;
  showRows(models.default);
  byId("refused").hidden = models.refused.length === 0;
  byId("refused-list").replaceChildren(...models.refused.map((/** @type {any} */ { name, version, reason }) => html("li", {}, html("strong", {}, `${name} version ${version}`), html("span", {}, reason))));
}

/** @param {string | null} defaultModel */
function showRows(defaultModel) {
  renew(byId("versions"), ...versionRows(entries, defaultModel, selected()?.key ?? ""));
}

/** Return the version that the address names; the first one if it names none that serves. */
function selected() {
  const entry = entries.find((each) => keyOf(each) === selectedKey()) ?? entries[0];
  return entry && { entry, key: keyOf(entry) };
}

/** Return the manifest of a version; it never changes, so it is asked for once. @param {Entry} entry */
function manifestOf({ name, version }) {
  const key = `${name}/${version.version}/${version.published}`;
  let manifest = manifests.get(key);
  if (!manifest) {
    manifest = getModel(name, version.version).then((card) => card.manifest);
    manifest.catch(() => manifests.delete(key));
    manifests.set(key, manifest);
  }
  return manifest;
}

async function showDetails() {
  const chosen = selected();
  byId("details").hidden = !chosen;
  if (!chosen) return;
  showChoice(chosen.entry);
  const other = entries.find((each) => keyOf(each) === byId("other").value) ?? null;
  const shown = other ? [chosen.entry, other] : [chosen.entry];
  const wanted = JSON.stringify(shown.map(({ name, version }) => [name, version]));
  const isWanted = () => selected()?.key === chosen.key && byId("other").value === (other ? keyOf(other) : "");
  try {
    if (wanted !== shownDetails) {
      const all = await Promise.all(shown.map(manifestOf));
      if (!isWanted() || wanted === shownDetails) return;
      const [first, second] = shown.map((entry, place) => ({ entry, manifest: all[place] }));
      shownDetails = wanted;
      byId("details-title").textContent = other ? `${titleOf(chosen.entry)} and ${titleOf(other)}` : titleOf(chosen.entry);
      renew(byId("columns"), ...versionDetails(first, second ?? null));
    }
    say(byId("details-notice"), "");
  } catch (error) {
    if (isWanted()) say(byId("details-notice"), sentenceOf(error));
  }
}

/** Fill the choice of the version to compare with. @param {Entry} chosen */
function showChoice(chosen) {
  const choice = byId("other");
  const before = choice.value;
  const others = entries.filter((each) => each !== chosen);
  const keys = others.map(keyOf);
  if ([...choice.options].slice(1).map(({ value }) => value).join() !== keys.join() || choice.options.length === 0) {
    choice.replaceChildren(html("option", { value: "" }, "no other"), ...others.map((each) => html("option", { value: keyOf(each) }, titleOf(each))));
    choice.value = keys.includes(before) ? before : "";
  }
  choice.disabled = others.length === 0;
}

addEventListener("hashchange", () => {
  showRows(JSON.parse(shownText || "{}").default ?? null);
  void showDetails();
});
byId("other").addEventListener("change", () => void showDetails());
new Poll(listing, show, showSilence);
