// A model's text on the page. What it writes is never trusted: a worker makes HTML of it within bounds of time, depth
// and size, DOMPurify keeps what can do no harm, and where any of it fails the text is shown as it is.

/* global DOMPurify */

import { copyButton } from "./copy.js";
import { element } from "./dom.js";
import { drawing, plainOnly } from "./guard.js";
import { readable, showPlain } from "./plain.js";
import { typeset } from "./typesetter.js";

const LONGEST = 100000; // characters that are typeset
const PAUSE_MS = 60; // at least, between two drawings of a text that grows

const CLEAN = {
  ALLOWED_TAGS: [
    "p", "br", "hr", "h1", "h2", "h3", "h4", "h5", "h6", "strong", "em", "del", "code", "pre", "div", "span", "a",
    "ul", "ol", "li", "blockquote", "table", "thead", "tbody", "tr", "th", "td", "sub", "sup", "kbd", "u", "mark",
  ],
  ALLOWED_ATTR: ["href", "class", "title", "align", "start"],
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

// A place for a text that may grow. Texts that come while one is drawn wait, and only the newest of them is drawn.
export class Rendered {
  constructor(place) {
    this.place = place;
    this.blocks = []; // of the text that stands there
    this.wanted = this.shown = "";
    this.working = null;
    this.left = false;
  }

  // Resolves when `text`, or a newer one, is drawn.
  show(text) {
    this.wanted = text;
    return (this.working ??= this.#work());
  }

  // Nobody looks at it any more.
  leave() {
    this.left = true;
  }

  async #work() {
    await null; // `working` is set before it can end
    while (this.wanted !== this.shown && !this.left) {
      const text = this.wanted;
      const began = performance.now();
      await this.#draw(text);
      this.shown = text;
      // the longer it takes, the rarer it is done: reading and typing go before
      if (this.wanted !== text) await new Promise((go) => setTimeout(go, PAUSE_MS + performance.now() - began));
    }
    this.working = null;
  }

  async #draw(text) {
    try {
      if (plainOnly) throw new Error("");
      if (this.why) throw this.why; // once is enough
      if (text.length > LONGEST) throw new Error("it is too long");
      const blocks = await typeset(readable(text), () => !this.left);
      if (!blocks || this.left) return;
      drawing();
      this.#put(blocks);
    } catch (error) {
      this.why = error;
      this.blocks = [];
      drawing();
      showPlain(this.place, text);
      if (error.message) {
        this.place.append(element("p", { className: "note", textContent: `Shown as plain text: ${error.message}.` }));
      }
    }
  }

  // Blocks that are the same as before stay, with what a reader may have selected in them.
  #put(blocks) {
    if (!this.blocks.length) {
      this.place.classList.remove("plain");
      this.place.replaceChildren();
    }
    let same = 0;
    while (same < blocks.length && same < this.blocks.length && isSame(blocks[same], this.blocks[same])) same += 1;
    while (this.place.childNodes.length > same) this.place.lastChild.remove();
    this.place.append(made(blocks.slice(same)));
    this.blocks = blocks;
  }
}

function isSame(a, b) {
  return a.html === b.html && a.raw === b.raw && String(a.formulae) === String(b.formulae);
}

// The blocks as elements: cleaned in one go, which costs less than one by one.
function made(blocks) {
  const html = blocks.map((block) => `<div class="block">${block.html ?? ""}</div>`).join("");
  const places = DOMPurify.sanitize(html, CLEAN);
  blocks.forEach((block, n) => finish(places.childNodes[n], block));
  return places;
}

// What the cleaning would not have let through, or does not know.
function finish(place, { raw, formulae }) {
  place.dir = "auto";
  if (raw !== undefined) return showPlain(place, raw);
  for (const link of place.querySelectorAll("a")) {
    link.target = "_blank";
    link.rel = "noopener noreferrer";
  }
  for (const code of place.querySelectorAll(".code")) {
    const text = code.querySelector("pre");
    text.tabIndex = 0; // it scrolls
    const copy = copyButton(() => text.textContent, "Copy the code");
    code.prepend(element("div", { className: "head" }, code.title, copy));
    code.removeAttribute("title");
  }
  place.querySelectorAll("span.math").forEach((span, n) => (span.innerHTML = formulae[n] ?? ""));
}
