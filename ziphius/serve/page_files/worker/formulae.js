// Formulae: where they stand in a text, and their typesetting.
"use strict";

/* global katex, BOUNDS, measure, escapeHtml */

const FORMULAE = [
  { open: "$$", close: "$$", block: true },
  { open: "\\[", close: "\\]", block: true },
  { open: "\\(", close: "\\)", block: false },
  { open: "$", close: "$", block: false },
];
const KATEX = { throwOnError: true, trust: false, strict: "ignore", maxSize: 30, maxExpand: 200 };

// Typeset formulae of the block at work. They bear styles, which nothing else on the page may, and so go another way.
const typesetFormulae = [];

const formulaExtension = {
  name: "formula",
  level: "inline",
  start: (text) => {
    const place = text.search(/\$|\\\(|\\\[/);
    return place < 0 ? undefined : place;
  },
  tokenizer(text) {
    for (const { open, close, block } of FORMULAE) {
      if (!text.startsWith(open)) continue;
      const near = text.slice(0, BOUNDS.formula);
      const end = near.indexOf(close, open.length);
      const tex = near.slice(open.length, end);
      // a lone dollar is money: a formula has no space inside its dollars, ends on its line, and no digit follows it
      if (end < 0 || !tex.trim()) continue;
      if (open === "$" && (/^\s|\s$|\n/.test(tex) || /\d/.test(text[end + 1] ?? ""))) continue;
      return { type: "formula", raw: text.slice(0, end + close.length), tex, block };
    }
    return undefined;
  },
  renderer: ({ raw, tex, block }) => {
    const html = typesetFormula(tex, block);
    if (html === null) return `<code>${escapeHtml(raw)}</code>`;
    typesetFormulae.push(html);
    return `<span class="math${block ? " block" : ""}"></span>`;
  },
};

// null where it is none, or nested too deeply.
function typesetFormula(tex, block) {
  try {
    const html = katex.renderToString(tex, { ...KATEX, displayMode: block });
    return measure(html).depth > BOUNDS.formulaDepth ? null : html;
  } catch {
    return null;
  }
}
