// The list of conversations: open, rename, delete, search.

import { $, button, element, rarely } from "./dom.js";
import { titleOf } from "./check.js";

export class Side {
  // `acts`: open(conversation), remove(conversation), rename(conversation, title), found(text) -> conversations,
  // isHere(conversation), isWriting(conversation).
  constructor(acts) {
    this.acts = acts;
    this.renaming = null;
    $("open-side").onclick = () => this.show(true);
    $("close-side").onclick = $("shade").onclick = () => this.show(false);
    $("search").oninput = rarely(120, () => this.draw());
    $("search").onkeydown = (event) => {
      if (event.key !== "Escape" || !$("search").value) return;
      event.stopPropagation();
      $("search").value = "";
      this.draw();
    };
  }

  // On a narrow page the list lies over it.
  show(open) {
    const was = $("side").classList.contains("open");
    $("side").classList.toggle("open", open);
    $("shade").hidden = !open;
    $("open-side").setAttribute("aria-expanded", String(open));
    if (open) $("close-side").focus();
    else if (was) $("open-side").focus();
    return was && !open;
  }

  draw() {
    if (this.renaming) return; // the list waits until the name is written
    const searched = $("search").value.trim();
    const found = this.acts.found(searched);
    const had = document.activeElement?.closest("#conversations li")?.dataset.id;
    const kind = document.activeElement?.className;
    $("conversations").replaceChildren(...found.map((conversation) => this.#entry(conversation)));
    $("none-found").hidden = Boolean(found.length) || !searched;
    if (had && kind) this.#buttonOf(had, kind)?.focus();
  }

  #buttonOf(id, kind) {
    return $("conversations").querySelector(`li[data-id="${CSS.escape(id)}"] button.${kind}`);
  }

  #entry(conversation) {
    const { acts } = this;
    const here = acts.isHere(conversation);
    const name = button("", () => acts.open(conversation), { className: "name" });
    name.append(element("span", { className: "title", dir: "auto", textContent: conversation.title }));
    if (here) name.setAttribute("aria-current", "true");
    if (acts.isWriting(conversation)) {
      const said = element("span", { className: "unseen", textContent: " (writing)" });
      name.append(element("span", { className: "writing" }, said));
    }
    const called = `“${conversation.title}”`;
    const edit = () => this.#rename(conversation, entry);
    const rename = button("✎", edit, { name: `Rename ${called}`, className: "rename" });
    const drop = button("✕", () => acts.remove(conversation), { name: `Delete ${called}`, className: "drop" });
    const entry = element("li", { className: here ? "here" : "" }, name, rename, drop);
    entry.dataset.id = conversation.id;
    return entry;
  }

  #rename(conversation, entry) {
    const field = element("input", { value: conversation.title, maxLength: 60, dir: "auto" });
    field.setAttribute("aria-label", "Name of the conversation");
    this.renaming = conversation;
    const end = (keep) => {
      if (this.renaming !== conversation) return;
      this.renaming = null;
      if (keep && field.value.trim()) this.acts.rename(conversation, titleOf(field.value));
      this.draw();
      this.#buttonOf(conversation.id, "rename")?.focus();
    };
    field.onkeydown = (event) => {
      if (event.isComposing || !["Enter", "Escape"].includes(event.key)) return;
      event.preventDefault(); // the same press must not reach the button that has the focus then
      event.stopPropagation();
      end(event.key === "Enter");
    };
    field.onblur = () => end(true);
    entry.replaceChildren(field);
    field.select();
  }
}
