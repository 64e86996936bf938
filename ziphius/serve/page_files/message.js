// One message on the page: a question that can be edited, or an answer with its thinking and its bill.

import { render } from "./render.js";

export function element(kind, properties = {}, ...children) {
  const made = Object.assign(document.createElement(kind), properties);
  made.append(...children);
  return made;
}

// A question; `edit(text)` is called with its new wording.
export function questionView(text, edit) {
  const shown = element("div", { className: "text", textContent: text });
  const change = element("button", { type: "button", textContent: "Edit" });
  const view = element("article", { className: "message user" }, shown, element("div", { className: "tools" }, change));
  view.setAttribute("aria-label", "You");
  change.onclick = () => {
    const field = element("textarea", { value: text, rows: 3 });
    field.setAttribute("aria-label", "Edit your question");
    const send = element("button", { type: "button", textContent: "Send again" });
    const leave = element("button", { type: "button", textContent: "Cancel" });
    send.onclick = () => field.value.trim() && edit(field.value.trim());
    leave.onclick = () => view.replaceWith(questionView(text, edit));
    view.replaceChildren(field, element("div", { className: "tools" }, send, leave));
    field.focus();
  };
  return view;
}

// An answer as it grows. `update(message)` shows its present state, `finish(message)` its end.
export class AnswerView {
  constructor(again) {
    this.summary = element("summary");
    this.thoughts = element("div", { className: "thoughts" });
    this.thinking = element("details", { className: "thinking", hidden: true }, this.summary, this.thoughts);
    this.answer = element("div", { className: "answer waiting" });
    this.tools = element("div", { className: "tools" });
    this.again = again;
    this.place = element("article", { className: "message assistant" }, this.thinking, this.answer, this.tools);
    this.place.setAttribute("aria-label", "Model");
    this.folded = false;
    this.waiting = null;
  }

  update(message) {
    this.message = message;
    this.waiting ??= requestAnimationFrame(() => {
      this.waiting = null;
      this.draw();
    });
  }

  draw() {
    const message = this.message;
    if (message.reasoning) {
      if (this.thinking.hidden) this.thinking.open = true; // opens while it thinks
      this.thinking.hidden = false;
      if (this.thoughts.textContent !== message.reasoning) {
        this.thoughts.textContent = message.reasoning;
        this.thoughts.scrollTop = this.thoughts.scrollHeight;
      }
      if ((message.content || message.finish) && !this.folded) {
        this.thinking.open = false; // folds when the answer starts
        this.folded = true;
      }
      this.summary.textContent = thought(message);
    }
    if (message.content) render(this.answer, message.content);
    this.answer.classList.toggle("waiting", !message.finish && !message.content);
  }

  finish(message) {
    if (this.waiting) cancelAnimationFrame(this.waiting);
    this.message = message;
    this.draw();
    this.answer.classList.remove("waiting");
    const copy = element("button", { type: "button", textContent: "Copy" });
    copy.onclick = () => navigator.clipboard?.writeText(message.content);
    const again = element("button", { type: "button", textContent: "Regenerate" });
    again.onclick = this.again;
    this.tools.replaceChildren(copy, again, bill(message));
    if (message.fault) {
      const fault = element("p", { className: "fault", textContent: message.fault });
      fault.setAttribute("role", "alert");
      this.answer.append(fault);
    }
  }
}

function thought(message) {
  const seconds = `${(message.thinkingSeconds ?? 0).toFixed(1)} s`;
  const tokens = message.usage?.completion_tokens_details.reasoning_tokens;
  const length = tokens ? `${tokens} tokens` : `${message.reasoning.length} characters`;
  return message.content || message.finish ? `Thought for ${seconds}, ${length}` : `Thinking… ${seconds}, ${length}`;
}

// Tokens, speed and price of an answer; what the same tokens cost by the price list.
function bill({ usage, seconds, finish }) {
  const parts = [];
  if (usage) {
    const price = usage.ziphius;
    parts.push(`${usage.completion_tokens} tokens`, `${Math.round(usage.completion_tokens / seconds)} tokens/s`);
    if (usage.prompt_cache_hit_tokens) parts.push(`${usage.prompt_cache_hit_tokens} of ${usage.prompt_tokens} read from cache`);
    if (price?.dollars) parts.push(dollars(price.dollars));
    if (price?.list_price) parts.push(`${price.list_price.model} list price ${dollars(price.list_price.dollars)}`);
  }
  if (finish === "length") parts.push("cut off at the longest answer");
  if (finish === "stopped") parts.push("stopped");
  return element("span", { className: "bill", textContent: parts.join(" · ") });
}

function dollars(amount) {
  return `$${amount >= 0.01 ? amount.toFixed(2) : Number(amount.toPrecision(2)).toFixed(10).replace(/0+$/, "")}`;
}
