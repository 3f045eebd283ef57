/** The page Try: takes an image, asks the service, and shows the answer. */

import { AnswerView } from "./answer.js";
import { ServiceError, address, fetchJson, getModel, getModels } from "./api.js";
import { byId, html } from "./dom.js";
import { exampleButtons, examples, ownExamples } from "./examples.js";
import { percent } from "./format.js";
import { measureFrame } from "./margins_of_model_images.js";
import { HeatMap } from "./heat_map.js";
import { listenForFiles } from "./image_files.js";
import { ImageList } from "./image_list.js";
import { latestOnly } from "./latest_request_only.js";
import { Settings } from "./settings.js";
import { Sketch } from "./sketch.js";
import { copy, snippet } from "./snippets.js";
import { verdict } from "./verdict.js";

const AT_ONCE = 8; // images of a request for the list
const NAMED_CLASSES = 12;
const RETRY_MILLISECONDS = 2000;
const LARGEST_PAD = 64; // an input up to this side, of one channel, is drawn by default

/** @typedef {{blob: Blob, name: string}} Picture */

/** @type {any[]} */
let models = [];
/** @type {Picture | null} what is asked about */
let picture = null;
let language = "curl";
let retry = 0;
let calibrationImages = 0;
let listRuns = 0;

const answer = new AnswerView(byId("answer"));
const settings = new Settings(askAgain);
const heatMap = new HeatMap(say);
const list = new ImageList((item) => showFile(item.file));
const sketch = new Sketch(byId("pad"), byId("sent"), () => latestDrawing(null));
const ask = latestOnly(answerPicture);
const latestDrawing = latestOnly(takeDrawing);

const model = () => models.find(({ name }) => name === byId("model").value);
const query = () => ({ model: models.length > 1 ? model().name : null, ...settings.query() });

/** Show a sentence about what went wrong; none if it is empty. @param {string} sentence */
function say(sentence) {
  const notice = byId("notice");
  [notice.textContent, notice.hidden] = [sentence, sentence === ""];
}

function askAgain() {
  showRequest();
  if (picture) ask(picture);
  if (list.items.length > 1) void answerList();
}

/** @param {Picture} asked */
async function answerPicture(asked) {
  if (!model()) return; // `loadModels` has said why
  const sent = { ...query(), per_sample: settings.method === "analytic" ? null : true };
  const start = performance.now();
  try {
    const response = await post(sent, asked.blob);
    say("");
    answer.show(response, model().class_names, calibrationImages, performance.now() - start);
    settings.follow(response);
    const { headline, confidence, word } = verdict(response, response.predictions[0]);
    byId("said").textContent = [headline, confidence, word].filter((each) => each !== "").join(". ");
    heatMap.offer(asked.blob, { model: sent.model, version: response.version, label: response.predictions[0].label });
    showRequest();
  } catch (error) {
    fail(error, () => picture === asked && ask(asked));
  }
}

/** Ask about one image. @param {Record<string, any>} sent @param {Blob} image */
const post = (sent, image) => fetchJson(address("uncertainty", sent), { method: "POST", body: image, headers: { "Content-Type": image.type || "application/octet-stream" } });

/** Say what went wrong; where the service does not answer, try again until it does. @param {unknown} error @param {() => void} again */
function fail(error, again) {
  say(error instanceof Error ? error.message : String(error));
  clearTimeout(retry);
  if (error instanceof ServiceError && (error.status === 0 || error.status === 503)) retry = setTimeout(again, RETRY_MILLISECONDS);
}

function showRequest() {
  byId("request").hidden = picture === null;
  if (picture) byId("snippet").textContent = snippet(language, picture.name, query());
  for (const button of document.querySelectorAll("[data-language]")) button.setAttribute("aria-pressed", String(button.getAttribute("data-language") === language));
}

/** @param {Picture} next */
function choose(next) {
  picture = next;
  ask(next);
}

/** @param {File} file */
function showFile(file) {
  const preview = byId("preview");
  URL.revokeObjectURL(preview.src);
  preview.src = URL.createObjectURL(file);
  preview.onload = () => preview.classList.toggle("pixelated", preview.naturalWidth <= LARGEST_PAD);
  preview.hidden = false;
  byId("drop-hint").textContent = "Drop or paste another one here.";
  choose({ blob: file, name: file.name });
}

/** @param {File[]} files */
function takeFiles(files) {
  markExample("");
  showMode("files");
  list.start(files);
  showFile(files[0]);
  if (files.length > 1) void answerList();
}

async function answerList() {
  const run = ++listRuns; // a newer run ends this one
  const { items } = list;
  const sent = query();
  for (let start = 0; start < items.length; start += AT_ONCE) {
    await Promise.all(
      items.slice(start, start + AT_ONCE).map(async (item) => {
        try {
          const response = await post(sent, item.file);
          if (run === listRuns) [item.prediction, item.error] = [response.predictions[0], ""];
        } catch (error) {
          if (run === listRuns) [item.prediction, item.error] = [null, error instanceof Error ? error.message : String(error)];
        }
      }),
    );
    if (run !== listRuns) return;
    list.show();
  }
}

async function takeDrawing() {
  const save = byId("save");
  save.hidden = sketch.isEmpty;
  if (sketch.isEmpty) return;
  const blob = await sketch.toBlob();
  URL.revokeObjectURL(save.href);
  save.href = URL.createObjectURL(blob);
  choose({ blob, name: "drawing.png" });
}

/** @param {"files" | "sketch"} mode */
function showMode(mode) {
  byId("files").hidden = mode !== "files";
  byId("sketch").hidden = mode !== "sketch";
  byId("show-files").setAttribute("aria-pressed", String(mode === "files"));
  byId("show-sketch").setAttribute("aria-pressed", String(mode === "sketch"));
}

async function useModel() {
  const { name, input, class_names: classes } = model();
  const side = Math.max(input.height, input.width);
  const named = classes.length <= NAMED_CLASSES ? classes.join(", ") : `${classes.slice(0, NAMED_CLASSES - 2).join(", ")} … ${classes.at(-1)}`;
  byId("knows").textContent = `It knows ${classes.length} classes: ${named}. It sees ${input.width} × ${input.height} pixels.`;
  if (!picture) showMode(input.channels === 1 && side <= LARGEST_PAD ? "sketch" : "files");
  calibrationImages = (await getModel(name)).manifest.calibration?.images ?? 0;
  askAgain();
  const own = await ownExamples(name);
  if (model().name !== name) return;
  byId("examples").replaceChildren(...exampleButtons(examples(own, input), (example) => void takeExample(example)));
  sketch.setModel(await measureFrame(own.map(({ thumbnail }) => thumbnail)), side);
}

/** @param {import("./examples.js").Example} example */
async function takeExample({ name, load }) {
  try {
    const blob = await load();
    takeFiles([new File([blob], name, { type: blob.type })]);
    markExample(name);
  } catch {
    say("The example could not be loaded.");
  }
}

/** Mark the button of an example as the one that is shown. @param {string} name */
function markExample(name) {
  for (const button of byId("examples").children) button.setAttribute("aria-pressed", String(button.dataset.example === name));
}

async function loadModels() {
  try {
    const listed = await getModels();
    if (listed.models.length === 0) throw new ServiceError("No model is loaded yet: train one with `python -m training`, and it appears here by itself.", "not_ready", 503);
    models = listed.models;
    say("");
    byId("model").replaceChildren(...models.map(({ name, test_accuracy }) => html("option", { value: name }, test_accuracy === null ? name : `${name} (right for ${percent(test_accuracy)} of test images)`)));
    byId("model").value = listed.default ?? models[0].name;
    await useModel();
  } catch (error) {
    fail(error, () => void loadModels());
  }
}

byId("model").addEventListener("change", () => useModel().catch((error) => fail(error, () => void loadModels())));
byId("show-files").addEventListener("click", () => showMode("files"));
byId("show-sketch").addEventListener("click", () => showMode("sketch"));
byId("clear").addEventListener("click", () => sketch.clear());
byId("undo").addEventListener("click", () => sketch.undo());
byId("fit").addEventListener("change", () => {
  sketch.fits = byId("fit").checked;
  sketch.changed();
});
byId("pen").addEventListener("input", () => {
  sketch.penScale = Number(byId("pen").value);
  sketch.changed();
});
for (const button of document.querySelectorAll("[data-language]")) {
  button.addEventListener("click", () => {
    language = String(button.getAttribute("data-language"));
    showRequest();
  });
}
byId("copy").addEventListener("click", async () => {
  await copy(byId("snippet").textContent);
  byId("copied").textContent = "Copied.";
});
listenForFiles(takeFiles);
void loadModels();
