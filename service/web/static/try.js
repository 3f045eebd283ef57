/** The page Try: takes an image, asks the service, and shows the answer. */

import { AnswerView } from "./answer.js";
import { postImage, sentenceOf } from "./api.js";
import { Question, untilAnswered } from "./asking.js";
import { byId, isolated, listed, say } from "./dom.js";
import { exampleButtons, examples, ownExamples } from "./examples.js";
import { measureFrame } from "./margins_of_model_images.js";
import { HeatMap } from "./heat_map.js";
import { listenForFiles, readFile } from "./image_files.js";
import { ImageList } from "./image_list.js";
import { ModelChoice } from "./model_choice.js";
import { Preview } from "./preview.js";
import { Settings } from "./settings.js";
import { Sketch } from "./sketch.js";
import { copy, snippet } from "./snippets.js";

const NAMED_CLASSES = 12;
const LARGEST_PAD = 64; // an input up to this side, of one channel, is drawn by default
const PATIENCE_MILLISECONDS = 150; // a quicker answer replaces that to another picture without a flicker

/**
 * What is asked about: a file, or the drawing, which stays the same picture while it grows.
 * @typedef {{name: string, read: () => Promise<Blob>, file: File | null}} Picture
 */

/** @type {Question<Picture, any> | null} */
let question = null;
let modelShown = new AbortController(); // ended when another model is shown
let padReady = Promise.resolve(); // once the pad has the frame of the model that is shown
let language = "curl";
let patience = 0;

const answer = new AnswerView(byId("answer"), byId("said"));
const settings = new Settings(askAgain);
const choice = new ModelChoice(useModel);
const heatMap = new HeatMap();
const preview = new Preview();
const list = new ImageList((file) => choose(fileAsPicture(file)));
const sketch = new Sketch(byId("pad"), byId("sent"), takeDrawing);

const query = () => ({ model: choice.name, ...settings.query() });

/** Ask anew about another picture, or show that there is none. @param {Picture | null} next */
function choose(next) {
  question?.end();
  question = next && new Question(next, answerTo, showAnswer, (error) => show(() => answer.refuse(sentenceOf(error)), null));
  clearTimeout(patience);
  answer.hush();
  markExample("");
  list.select(next?.file ?? null);
  preview.show(next?.file ?? null);
  if (!next) return show(() => answer.clear(), null);
  showRequest();
  patience = setTimeout(() => show(() => answer.wait(), null), PATIENCE_MILLISECONDS);
  ask();
}

/** Ask the question as it is now; without a model `loadModels` has said why there is none. */
function ask() {
  if (choice.model) void question?.ask();
}

/** Show what is known of the picture, everywhere. @param {() => void} draw it in the answer's place @param {import("./heat_map.js").Explained | null} explained */
function show(draw, explained) {
  clearTimeout(patience);
  draw();
  heatMap.offer(explained);
  showRequest();
}

/** Ask about the same pictures with other settings. */
function askAgain() {
  showRequest();
  ask();
  list.askAgain(query());
}

/** Send one request, and return what is shown of its answer. @param {Picture} picture @param {AbortSignal} signal */
async function answerTo(picture, signal) {
  answer.expect();
  const image = await picture.read();
  const sent = query();
  const start = performance.now();
  const response = await postImage("uncertainty", { ...sent, per_sample: settings.method === "analytic" ? null : true }, image, signal);
  const milliseconds = performance.now() - start;
  const images = (await versionOf(response))?.calibration_images ?? null;
  return { response, images, milliseconds, explained: { image, query: { model: sent.model, version: response.version, label: response.predictions[0].label } } };
}

/** @param {any} answered what `answerTo` gives */
function showAnswer({ response, images, milliseconds, explained }) {
  show(() => answer.show(response, images, milliseconds), explained);
  settings.follow(response);
}

/**
 * Return the version that has answered; if it was published since, show it. Another replica may have one that is
 * not known here.
 * @param {any} response
 */
async function versionOf(response) {
  if (!choice.version(response.version)) {
    await choice.load().catch(() => null); // the answer is there all the same
    if (choice.version(response.version)) padReady = showModel();
  }
  return choice.version(response.version);
}

function showRequest() {
  byId("request").hidden = question === null;
  byId("copied").textContent = "";
  if (question) byId("snippet").textContent = snippet(language, question.subject.name, query());
  for (const button of document.querySelectorAll("[data-language]")) button.setAttribute("aria-pressed", String(button.getAttribute("data-language") === language));
}

/** @param {File} file @returns {Picture} */
const fileAsPicture = (file) => ({ name: file.name, read: () => readFile(file), file });

/** @param {File[]} files */
function takeFiles(files) {
  showMode("files");
  list.start(files, query());
  choose(fileAsPicture(files[0]));
}

/** Ask about the drawing, which has changed. */
function takeDrawing() {
  const isAsked = question?.subject.read === readDrawing;
  if (sketch.isEmpty) {
    byId("save").hidden = true;
    sketch.paintSent();
    if (isAsked) choose(null);
  } else if (isAsked) ask();
  else choose({ name: "drawing.png", read: readDrawing, file: null });
}

/** Return the drawing as it is now, and offer to save it. */
async function readDrawing() {
  await padReady;
  const blob = await sketch.toBlob();
  const save = byId("save");
  URL.revokeObjectURL(save.href);
  [save.href, save.hidden] = [URL.createObjectURL(blob), sketch.isEmpty];
  return blob;
}

/** @param {"files" | "sketch"} mode */
function showMode(mode) {
  byId("files").hidden = mode !== "files";
  byId("sketch").hidden = mode !== "sketch";
  byId("show-files").setAttribute("aria-pressed", String(mode === "files"));
  byId("show-sketch").setAttribute("aria-pressed", String(mode === "sketch"));
}

/** Show the chosen model, and ask it about the same pictures. */
function useModel() {
  padReady = showModel();
  if (question) choose(question.subject);
  list.askAgain(query());
}

async function showModel() {
  modelShown.abort();
  modelShown = new AbortController();
  const { signal } = modelShown;
  const { name, input, class_names: classes } = choice.model;
  const side = Math.max(input.height, input.width);
  const named = classes.length <= NAMED_CLASSES ? listed(classes) : [...listed(classes.slice(0, NAMED_CLASSES - 2)), " … ", isolated(classes.at(-1))];
  byId("knows").replaceChildren(`It knows ${classes.length} classes: `, ...named, `. It sees ${input.width} × ${input.height} pixels.`);
  if (!question) showMode(input.channels === 1 && side <= LARGEST_PAD ? "sketch" : "files");
  const own = await ownExamples(name, signal);
  const frame = await measureFrame(own.map(({ image }) => image));
  if (signal.aborted) return;
  const place = byId("examples");
  for (const { src } of place.querySelectorAll("img")) URL.revokeObjectURL(src);
  place.replaceChildren(...exampleButtons(examples(own, input), (example) => void takeExample(example)));
  sketch.setModel(frame, side);
}

/** @param {import("./examples.js").Example} example */
async function takeExample({ name, load }) {
  const blob = await load();
  takeFiles([new File([blob], name, { type: blob.type })]);
  markExample(name);
}

/** Mark the button of an example as the one that is shown. @param {string} name */
function markExample(name) {
  for (const button of byId("examples").children) button.setAttribute("aria-pressed", String(button.dataset.example === name));
}

async function loadModels() {
  const refuse = (/** @type {unknown} */ error) => say(byId("notice"), sentenceOf(error));
  try {
    await untilAnswered(() => choice.load(), { onPause: refuse });
    say(byId("notice"), "");
    useModel();
  } catch (error) {
    refuse(error);
  }
}

byId("show-files").addEventListener("click", () => showMode("files"));
byId("show-sketch").addEventListener("click", () => {
  showMode("sketch");
  if (!sketch.isEmpty) takeDrawing();
});
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
byId("copy").addEventListener("click", async () => (byId("copied").textContent = await copy(byId("snippet"))));
listenForFiles(takeFiles);
void loadModels();
