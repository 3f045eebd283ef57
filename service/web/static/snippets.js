/** Writes the request that the page has sent, for a terminal and for programs. */

import { address } from "./api.js";
import { hasKey } from "./key.js";

/**
 * @param {string} language curl, python or javascript
 * @param {string} file the image's name
 * @param {Record<string, any>} query
 */
export function snippet(language, file, query) {
  const url = String(address("uncertainty", query));
  const name = file.replace(/[^\w. -]/g, "_");
  if (language === "python") {
    return [
      ...(hasKey() ? ["import os", ""] : []),
      "import requests",
      "",
      `with open("${name}", "rb") as image:`,
      "    response = requests.post(",
      `        "${url}",`,
      '        files={"file": image},',
      ...(hasKey() ? [`        headers={"Authorization": f"Bearer {os.environ['DROPSERVE_KEY']}"},`] : []),
      "    )",
      "response.raise_for_status()",
      'answer = response.json()["predictions"][0]',
      'print(answer["label"], answer["confidence"], answer["abstain_because"])',
    ].join("\n");
  }
  if (language === "javascript") {
    return [
      'const form = new FormData();',
      'form.append("file", input.files[0]); // of <input type="file" id="input">',
      `const response = await fetch("${url}", { method: "POST", body: form${hasKey() ? ', headers: { Authorization: "Bearer KEY" }' : ""} });`,
      "const { predictions: [answer] } = await response.json();",
      "console.log(answer.label, answer.confidence, answer.abstain_because);",
    ].join("\n");
  }
  const key = hasKey() ? ' -H "Authorization: Bearer $DROPSERVE_KEY"' : "";
  return `curl${key} -F 'file=@${name}' '${url}'`;
}

/**
 * Put the text of an element on the clipboard. Where the page may not use it, or there is none (without a secure
 * context), the text is selected and copied as a selection is, which may be forbidden as well.
 * @param {HTMLElement} element
 * @returns {Promise<string>} a sentence on what was done
 */
export async function copy(element) {
  try {
    await navigator.clipboard.writeText(element.textContent ?? "");
    return "Copied.";
  } catch {
    getSelection()?.selectAllChildren(element);
    return document.execCommand("copy") ? "Copied." : "The browser does not let the page copy. The text is selected: copy it with the keys or the menu.";
  }
}
