// Markdown to HTML of a few kinds of element, each opened and closed here: HTML that a model writes is shown as text.
"use strict";

/* global marked, hljs, BOUNDS, escapeHtml, formulaExtension */

const PLAIN_TAG = /^<(sub|sup|kbd|u|mark)>([^<>\n]{1,200})<\/\1>/;

const plainTagExtension = {
  name: "plainTag",
  level: "inline",
  start: (text) => {
    const place = text.search(/<(?:sub|sup|kbd|u|mark)>/);
    return place < 0 ? undefined : place;
  },
  tokenizer(text) {
    const found = PLAIN_TAG.exec(text);
    return found ? { type: "plainTag", raw: found[0], tag: found[1], text: found[2] } : undefined;
  },
  renderer: ({ tag, text }) => `<${tag}>${escapeHtml(text)}</${tag}>`,
};

const renderer = {
  html: ({ text }) => (/^<br ?\/?>$/.test(text.trim()) ? "<br>" : escapeHtml(text)),
  // a picture would be fetched from elsewhere: its address is shown instead
  image: ({ href, text }) => `<a href="${escapeHtml(href)}">${escapeHtml(text || href)}</a>`,
  checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
  code({ text, lang }) {
    const language = /^[\w+#.-]{1,30}/.exec(lang ?? "")?.[0] ?? "";
    const coloured = hljs.getLanguage(language) && text.length <= BOUNDS.code;
    const html = coloured ? hljs.highlight(text, { language, ignoreIllegals: true }).value : escapeHtml(text);
    return `<div class="code" title="${escapeHtml(language)}"><pre><code class="hljs">${html}</code></pre></div>\n`;
  },
};

const markdown = new marked.Marked({
  gfm: true,
  breaks: true,
  extensions: [formulaExtension, plainTagExtension],
  renderer,
});
