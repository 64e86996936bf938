// What a text may become at most: markup beyond this is not given to the page, which would lay it out slowly, or die.
"use strict";

const BOUNDS = {
  depth: 60, // elements inside each other, of one block
  formulaDepth: 150, // a fraction takes ten
  elements: 12000, // of a message in all: some tenths of a second to put on the page
  block: 400, // characters of source, at least, that go to the page as one
  formula: 4000, // characters
  code: 20000, // characters that are coloured
};

const EMPTY = new Set(["br", "hr", "wbr"]);

// How many elements a piece of well-formed HTML has, and how many stand inside each other.
function measure(html) {
  let depth = 0;
  let deepest = 0;
  let elements = 0;
  for (const [, closes, name, closed] of html.matchAll(/<(\/?)([a-zA-Z][\w-]*)[^>]*?(\/?)>/g)) {
    if (closes) {
      depth -= 1;
      continue;
    }
    elements += 1;
    if (closed || EMPTY.has(name)) continue;
    depth += 1;
    deepest = Math.max(deepest, depth);
  }
  return { elements, depth: deepest };
}

function escapeHtml(text) {
  return text.replace(/[&<>"']/g, (mark) => `&#${mark.charCodeAt(0)};`);
}
