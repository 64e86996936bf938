// The typesetter: a text comes, its blocks go back as HTML. It may take too long, or die: the page ends it and shows
// the text as it is.
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
// block would be more than the page can bear. A text that grows keeps its first blocks.
function typeset(text) {
  const tokens = markdown.lexer(text);
  const blocks = [];
  let left = BOUNDS.elements;
  for (let next = 0; next < tokens.length; ) {
    const first = next;
    let raw = "";
    while (next < tokens.length && raw.length < BOUNDS.block) raw += tokens[next++].raw;
    const block = made(tokens.slice(first, next));
    const cost = block ? block.elements : Infinity;
    if (cost > left) blocks.push({ raw });
    else blocks.push({ html: block.html, formulae: block.formulae });
    if (cost <= left) left -= cost;
  }
  return blocks;
}

// null where elements stand too deep inside each other.
function made(tokens) {
  typesetFormulae.length = 0;
  const html = markdown.parser(tokens);
  const { depth, elements } = measure(html);
  if (depth > BOUNDS.depth) return null;
  const formulae = [...typesetFormulae];
  return { html, formulae, elements: formulae.reduce((sum, formula) => sum + measure(formula).elements, elements + 1) };
}

onmessage = ({ data }) => {
  try {
    postMessage({ blocks: typeset(data) });
  } catch {
    postMessage({ blocks: null }); // a RangeError of the parsers' recursion
  }
};
postMessage("ready");
