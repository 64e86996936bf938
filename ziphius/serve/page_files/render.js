// A model's text as markdown, code and formulae. What it writes is never trusted: marked makes HTML, DOMPurify keeps
// what can do no harm, and only then do KaTeX and highlight.js fill in places that hold plain text.

/* global marked, DOMPurify, katex, hljs */

const FORMULAE = [
  { open: "$$", close: "$$", block: true },
  { open: "\\[", close: "\\]", block: true },
  { open: "\\(", close: "\\)", block: false },
  { open: "$", close: "$", block: false },
];

const formula = {
  name: "formula",
  level: "inline",
  start: (text) => {
    const place = text.search(/\$|\\\(|\\\[/);
    return place < 0 ? undefined : place;
  },
  tokenizer(text) {
    for (const { open, close, block } of FORMULAE) {
      if (!text.startsWith(open)) continue;
      const end = text.indexOf(close, open.length);
      const tex = text.slice(open.length, end);
      // a lone dollar is money: a formula has no space inside its dollars, ends on its line, and no digit follows it
      if (end < 0 || !tex.trim()) continue;
      if (open === "$" && (/^\s|\s$|\n/.test(tex) || /\d/.test(text[end + 1] ?? ""))) continue;
      return { type: "formula", raw: text.slice(0, end + close.length), tex, block };
    }
    return undefined;
  },
  renderer: ({ tex, block }) => `<span class="math ${block ? "block" : ""}">${escape(tex)}</span>`,
};

const CLEAN = {
  FORBID_TAGS: ["style", "form", "input", "button", "textarea", "select", "option", "img", "video", "audio", "svg", "math"],
  FORBID_ATTR: ["style", "id", "name"],
};

let ready = false;

export function render(place, text) {
  if (!ready) prepare();
  place.innerHTML = DOMPurify.sanitize(marked.parse(text), CLEAN);
  for (const link of place.querySelectorAll("a")) {
    link.target = "_blank";
    link.rel = "noopener noreferrer";
  }
  for (const span of place.querySelectorAll(".math")) {
    const options = { displayMode: span.classList.contains("block"), throwOnError: false, trust: false, maxExpand: 1000 };
    katex.render(span.textContent, span, options);
  }
  for (const code of place.querySelectorAll("pre code")) hljs.highlightElement(code);
}

function prepare() {
  marked.use({ extensions: [formula], gfm: true, breaks: true });
  hljs.configure({ ignoreUnescapedHTML: true });
  ready = true;
}

function escape(text) {
  return text.replace(/[&<>"']/g, (mark) => `&#${mark.charCodeAt(0)};`);
}
