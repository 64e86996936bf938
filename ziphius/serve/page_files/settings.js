// The settings and their form. They are kept as they are typed.

import { showColours } from "./colours.js";
import { $ } from "./dom.js";
import { loadSettings, saveSettings } from "./store.js";

export const settings = loadSettings();

// `done()` is called when the form has been closed.
export function initSettings(done) {
  const form = $("settings").querySelector("form");
  form.oninput = () => {
    for (const field of named(form)) settings[field.name] = field.value;
    saveSettings(settings);
    showColours(settings.theme);
  };
  $("open-settings").onclick = () => openSettings();
  $("settings").onclose = done;
  $("settings").onclick = (event) => {
    if (event.target === $("settings")) $("settings").close(); // beside the form
  };
  $("think").onclick = () => {
    settings.think = settings.think === false;
    saveSettings(settings);
    showThink();
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => showColours(settings.theme));
  showThink();
  showColours(settings.theme);
}

// Opens the form, at the field of that name if there is one given.
export function openSettings(name) {
  const form = $("settings").querySelector("form");
  for (const field of named(form)) field.value = settings[field.name] ?? "";
  $("settings").showModal();
  if (name) form.elements[name].focus();
}

function showThink() {
  $("think").setAttribute("aria-pressed", String(settings.think !== false));
}

function named(form) {
  return [...form.elements].filter((field) => field.name);
}
