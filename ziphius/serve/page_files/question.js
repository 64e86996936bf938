// A question on the page, which can be asked in other words.

import { branches } from "./branches.js";
import { copyButton } from "./copy.js";
import { button, element } from "./dom.js";
import { showPlain } from "./plain.js";
import { questionText } from "./request.js";

export class QuestionView {
  // `acts`: edit(text), choose(message). `all`: the wordings that stand in its place.
  constructor(message, all, acts) {
    Object.assign(this, { message, all, acts });
    this.place = element("article", { className: "message user" });
    this.place.setAttribute("aria-label", "You");
  }

  draw() {
    const { message, all, acts } = this;
    const text = element("div", { className: "text", dir: "auto" });
    showPlain(text, message.content);
    this.change = button("Edit", () => this.edit());
    const copy = copyButton(() => questionText(message), "Copy the question");
    const tools = element("div", { className: "tools" }, ...branches(all, message, acts.choose), copy, this.change);
    this.place.replaceChildren(...(message.files ?? []).map(fileView), ...(message.content ? [text] : []), tools);
  }

  edit() {
    const field = element("textarea", { value: this.message.content, rows: 3, dir: "auto" });
    field.setAttribute("aria-label", "Edit your question");
    const send = () => field.value.trim() && this.acts.edit(field.value.trim());
    const leave = () => {
      this.draw();
      this.change.focus();
    };
    field.onkeydown = (event) => {
      if (event.isComposing) return;
      if (event.key === "Enter" && !event.shiftKey) {
        event.preventDefault();
        send();
      } else if (event.key === "Escape") {
        event.stopPropagation(); // it leaves the edit, and stops no answer
        leave();
      }
    };
    const ways = [button("Cancel", leave), button("Send again", send, { className: "main" })];
    this.place.replaceChildren(field, element("div", { className: "tools" }, ...ways));
    field.focus();
  }

  see() {}

  leave() {}
}

function fileView({ name, text }) {
  const content = element("div", { className: "content" });
  const summary = element("summary", { textContent: `${name} · ${text.length.toLocaleString("en")} characters` });
  const view = element("details", { className: "file" }, summary, content);
  view.ontoggle = () => {
    if (view.open) showPlain(content, text);
  };
  return view;
}
