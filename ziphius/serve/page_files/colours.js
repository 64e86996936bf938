// Light or dark, as the system has it or as chosen.

import { $ } from "./dom.js";

export function showColours(theme) {
  const dark = theme ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  $("code-light").media = dark ? "not all" : "all";
  $("code-dark").media = dark ? "all" : "not all";
}
