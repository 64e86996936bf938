// The typesetter: a text comes, its blocks go back as HTML. It may take too long, or die: the page ends it and shows the
// text as it is.
"use strict";

importScripts(
  "../vendor/marked/marked.umd.js",
  "../vendor/katex/katex.min.js",
  "../vendor/highlight/highlight.min.js",
  "bounds.js",
  "formulae.js",
  "markdown.js",
);

/* global BOUNDS, markdown, measure, typesetFormulae */

// The blocks of a text: {html, formulae}, the formulae for the places that `html` leaves for them; or {raw}, where a
// block would be more than the page can bear.
function typeset(text) {
  let left = BOUNDS.elements;
  return markdown.lexer(text).filter(({ type }) => type !== "space").map((token) => {
    typesetFormulae.length = 0;
    const html = markdown.parser([token]);
    const formulae = [...typesetFormulae];
    const { depth, elements } = measure(html);
    const all = formulae.reduce((sum, formula) => sum + measure(formula).elements, elements);
    if (depth > BOUNDS.depth || all > left) return { raw: token.raw };
    left -= all;
    return { html, formulae };
  });
}

onmessage = ({ data }) => {
  try {
    postMessage({ blocks: typeset(data) });
  } catch {
    postMessage({ blocks: null }); // a RangeError of the parsers' recursion
  }
};
postMessage("ready");
