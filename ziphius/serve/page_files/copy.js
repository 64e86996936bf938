// Copying, also where the page did not come by https and the browser has no clipboard for it.

import { button } from "./dom.js";

// `text()` is asked when the button is pressed.
export function copyButton(text, name) {
  const made = button("Copy", async () => {
    made.textContent = (await copied(text())) ? "Copied" : "Not allowed";
    setTimeout(() => (made.textContent = "Copy"), 1500);
  });
  if (name) made.setAttribute("aria-label", name);
  return made;
}

async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copiedTheOldWay(text);
  }
}

function copiedTheOldWay(text) {
  const before = document.activeElement;
  const field = Object.assign(document.createElement("textarea"), { value: text, className: "unseen" });
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  before?.focus();
  return done;
}
