/** Takes images that a person chooses, drops, pastes or photographs. */

import { byId } from "./dom.js";

/** @param {(files: File[]) => void} onFiles */
export function listenForFiles(onFiles) {
  const [input, capture, drop] = [byId("file"), byId("capture"), byId("drop")];
  byId("choose").addEventListener("click", () => input.click());
  for (const each of [input, capture]) {
    each.addEventListener("change", () => {
      take(each.files, onFiles);
      each.value = ""; // so that the same file may be chosen again
    });
  }
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
  document.addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) drop.classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    take(event.dataTransfer?.files, onFiles);
  });
  document.addEventListener("paste", (event) => take(event.clipboardData?.files, onFiles));
  byId("photograph").addEventListener("click", () => {
    if (navigator.mediaDevices) void openCamera(onFiles);
    else capture.click(); // without a secure context, a phone's own camera
  });
}

function take(/** @type {FileList | null | undefined} */ files, /** @type {(files: File[]) => void} */ onFiles) {
  if (files && files.length > 0) onFiles([...files]);
}

/**
 * Return what a file holds.
 * @param {File} file
 * @returns {Promise<Blob>}
 * @throws {Error} where the browser gives a folder for a file, or the file has changed since
 */
export async function readFile(file) {
  try {
    return new Blob([await file.arrayBuffer()]);
  } catch {
    throw new Error(`The file “${file.name}” cannot be read, for it is a folder, or was changed or removed since it was chosen; choose an image file.`);
  }
}

async function openCamera(/** @type {(files: File[]) => void} */ onFiles) {
  const [dialog, viewfinder, notice, button] = [byId("camera"), byId("viewfinder"), byId("camera-notice"), byId("take")];
  const closed = new AbortController();
  /** @type {MediaStream | null} */
  let stream = null;
  dialog.addEventListener(
    "close",
    () => {
      closed.abort();
      for (const track of stream?.getTracks() ?? []) track.stop();
    },
    { once: true },
  );
  byId("close-camera").addEventListener("click", () => dialog.close(), { signal: closed.signal });
  notice.hidden = true;
  button.disabled = true;
  dialog.showModal();
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    const reason = error instanceof DOMException && error.name === "NotAllowedError" ? "The browser may not use the camera; allow it, or choose a file." : "No camera was found; choose a file.";
    [notice.textContent, notice.hidden] = [reason, false];
    return;
  }
  if (closed.signal.aborted) {
    for (const track of stream.getTracks()) track.stop();
    return;
  }
  // Before the first frame there is nothing to take.
  viewfinder.addEventListener("loadeddata", () => (button.disabled = false), { signal: closed.signal });
  viewfinder.srcObject = stream;
  const onTake = () => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [viewfinder.videoWidth, viewfinder.videoHeight];
    canvas.getContext("2d")?.drawImage(viewfinder, 0, 0);
    canvas.toBlob((blob) => blob && onFiles([new File([blob], "photograph.jpg", { type: "image/jpeg" })]), "image/jpeg", 0.92);
    dialog.close();
  };
  button.addEventListener("click", onTake, { signal: closed.signal });
}
