// An answer on the page, with its thinking, its calls, what went wrong, and its bill.

import { billLine } from "./bill.js";
import { branches } from "./branches.js";
import { copyButton } from "./copy.js";
import { button, element } from "./dom.js";
import { drawing } from "./guard.js";
import { readable, showPlain, tail } from "./plain.js";
import { Rendered } from "./render.js";
import { begun } from "./request.js";

const LONGEST_CALL = 20000; // characters of its arguments that are shown

export class AnswerView {
  // `acts`: again(), goOn(), choose(message), startAnew(), leaveOut(), enterKey(). `all`: the answers in its place.
  constructor(message, all, acts) {
    Object.assign(this, { message, all, acts });
    this.summary = element("summary");
    this.thoughts = element("div", { className: "thoughts", dir: "auto", tabIndex: 0 });
    this.thoughts.setAttribute("aria-label", "Thinking");
    this.thoughts.setAttribute("role", "region");
    this.thinking = element("details", { className: "thinking", hidden: true }, this.summary, this.thoughts);
    this.thinking.ontoggle = () => this.#drawThoughts();
    this.text = element("div", { className: "answer", dir: "auto" });
    this.calls = element("div", { className: "calls" });
    this.tools = element("div", { className: "tools" });
    const parts = [this.thinking, this.text, this.calls, this.tools];
    this.place = element("article", { className: "message assistant" }, ...parts);
    this.place.setAttribute("aria-label", "Model");
    this.rendered = new Rendered(this.text);
    this.live = this.folded = this.seen = false;
    this.frame = null;
  }

  // It is being written: `draw` comes again and again.
  start() {
    this.live = this.seen = true;
    this.folded = Boolean(this.message.content);
    this.tools.replaceChildren();
    this.place.querySelector(".fault")?.remove();
    this.update();
  }

  update() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      this.draw();
    });
  }

  draw() {
    const { message, live } = this;
    if (message.reasoning) {
      if (this.thinking.hidden && live && !message.content) this.thinking.open = true; // opens while it thinks
      this.thinking.hidden = false;
      if (live && message.content && !this.folded) this.thinking.open = false; // folds when the answer starts
      this.folded ||= live && Boolean(message.content);
      this.summary.textContent = thought(message, live);
      this.#drawThoughts();
    }
    if (message.content && this.seen) this.rendered.show(message.content);
    else if (message.content) showPlain(this.text, message.content);
    if (message.calls?.length) this.#drawCalls();
    this.text.classList.toggle("waiting", live && !message.content);
  }

  finish() {
    if (this.frame) cancelAnimationFrame(this.frame);
    this.frame = null;
    if (this.live && !this.folded) this.thinking.open = false;
    this.live = false;
    const { message, all, acts } = this;
    this.draw();
    const tools = [...branches(all, message, acts.choose)];
    if (message.content) tools.push(copyButton(() => message.content, "Copy the answer"));
    tools.push(button("Regenerate", acts.again));
    const whole = ["stop", "tool_calls"].includes(message.finish);
    if (!whole && begun(message)) tools.push(button("Continue", acts.goOn));
    this.tools.replaceChildren(...tools, billLine(message));
    if (message.omit) {
      const turns = message.omit === 1 ? "turn" : `${message.omit} turns`;
      const textContent = `Answered without the conversation's first ${turns}.`;
      this.tools.append(element("span", { className: "note", textContent }));
    }
    if (message.fault) this.tools.before(this.#fault());
  }

  // It has come near to where a reader looks: until then its text stands there as it is.
  see() {
    if (this.seen) return;
    this.seen = true;
    this.rendered.show(this.message.content);
  }

  leave() {
    this.rendered.leave();
  }

  #fault() {
    const { message, acts } = this;
    const ways = [];
    if (message.code === "key") ways.push(button("Enter a key", acts.enterKey));
    if (message.code === "full") {
      ways.push(button("Start a new conversation with this question", acts.startAnew));
      if (acts.leaveOut) ways.push(button("Ask without the oldest turns", acts.leaveOut));
    }
    const fault = element("div", { className: "fault" }, element("p", { textContent: message.fault.slice(0, 1000) }));
    if (ways.length) fault.append(element("div", { className: "ways" }, ...ways));
    fault.setAttribute("role", "alert");
    return fault;
  }

  #drawCalls() {
    drawing();
    this.calls.replaceChildren(...this.message.calls.map(callView));
  }

  // Closed, it costs nothing. While it grows, its end is what a reader follows.
  #drawThoughts() {
    if (!this.thinking.open || this.thinking.hidden) return;
    const { reasoning } = this.message;
    if (this.drawn === reasoning && this.drawnLive === this.live) return;
    this.drawn = reasoning;
    this.drawnLive = this.live;
    drawing();
    if (this.live) {
      this.thoughts.textContent = tail(reasoning);
      this.thoughts.scrollTop = this.thoughts.scrollHeight;
    } else showPlain(this.thoughts, reasoning);
  }
}

function thought(message, live) {
  const seconds = `${(message.thinkingSeconds ?? 0).toFixed(1)} s`;
  const tokens = message.usage?.completion_tokens_details.reasoning_tokens;
  const length = tokens ? `${tokens} tokens` : `${message.reasoning.length} characters`;
  return live && !message.content ? `Thinking… ${seconds}, ${length}` : `Thought for ${seconds}, ${length}`;
}

function callView({ name, arguments: given }) {
  const shown = given.length > LONGEST_CALL ? given : laidOut(given);
  const text = element("pre", { textContent: readable(shown.slice(0, LONGEST_CALL)), tabIndex: 0 });
  const title = element("strong", { textContent: readable(name.slice(0, 100)) || "…" });
  return element("div", { className: "call" }, element("p", {}, "Calls ", title), text);
}

function laidOut(json) {
  try {
    return JSON.stringify(JSON.parse(json), null, 2);
  } catch {
    return json; // not whole yet, or never
  }
}
