// The field for a question, with the files that go with it.

import { readFiles } from "./attach.js";
import { $, button, element } from "./dom.js";
import { toast } from "./toast.js";

export class Composer {
  // `send(text, files)` says whether it took them.
  constructor(send) {
    this.files = [];
    this.field = $("question");
    $("ask").onsubmit = (event) => {
      event.preventDefault();
      const text = this.field.value.trim();
      if ((text || this.files.length) && send(text, this.files)) this.put("");
    };
    this.field.oninput = () => this.fit();
    this.field.onkeydown = (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        $("ask").requestSubmit();
      }
    };
    $("attach").onclick = () => $("files").click();
    $("files").onchange = async () => {
      await this.attach([...$("files").files]);
      $("files").value = "";
      this.focus();
    };
    this.#takeDrops();
  }

  // A text to send or to change, and no files.
  put(text) {
    this.field.value = text;
    this.files = [];
    this.#chips();
    this.fit();
  }

  focus() {
    this.field.focus();
  }

  async attach(list) {
    const { files, refused } = await readFiles(list, this.files.length);
    this.files = [...this.files, ...files];
    for (const sentence of refused) toast(sentence);
    this.#chips();
  }

  // As high as its text, within what the style allows.
  fit() {
    this.field.style.height = "auto";
    this.field.style.height = `${this.field.scrollHeight}px`;
  }

  #chips() {
    const chips = this.files.map((file) => {
      const drop = button("✕", () => {
        this.files = this.files.filter((other) => other !== file);
        this.#chips();
        this.focus();
      }, { name: `Leave out ${file.name}`, className: "sign" });
      return element("li", {}, element("span", { textContent: file.name }), drop);
    });
    $("attached").replaceChildren(...chips);
    $("attached").hidden = !chips.length;
  }

  #takeDrops() {
    const held = (event) => event.dataTransfer?.types.includes("Files");
    addEventListener("dragover", (event) => {
      if (!held(event)) return;
      event.preventDefault();
      document.body.classList.add("dropping");
    });
    addEventListener("dragleave", (event) => event.relatedTarget || document.body.classList.remove("dropping"));
    addEventListener("drop", async (event) => {
      document.body.classList.remove("dropping");
      if (!held(event)) return;
      event.preventDefault();
      await this.attach([...event.dataTransfer.files]);
      this.focus();
    });
  }
}
