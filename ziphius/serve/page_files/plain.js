// A text as it is, however long: a part at a time.

import { button } from "./dom.js";

const PART = 30000; // characters that are laid out at once

// More marks on one letter than any script has reach over lines that are not theirs.
export function readable(text) {
  return text.replace(/(\p{M}{6})\p{M}+/gu, "$1");
}

// Puts the first part of `text` into `place`, and a button that adds the next.
export function showPlain(place, text) {
  place.classList.add("plain");
  place.replaceChildren(...parts(text, 0));
}

// The end of a text that grows: what a reader follows.
export function tail(text) {
  return readable(text.length > PART ? `…${text.slice(-PART)}` : text);
}

function parts(text, from) {
  const shown = readable(text.slice(from, from + PART));
  const left = text.length - from - PART;
  if (left <= 0) return [shown];
  const more = button(`Show more (${left.toLocaleString("en")} characters)`, () => {
    more.replaceWith(...parts(text, from + PART));
  });
  return [shown, more];
}
