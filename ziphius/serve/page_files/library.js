// All conversations of this browser, the newest first. Knows nothing of the page.

import { checkedConversation } from "./check.js";
import { eraseConversation, loadConversations, saveConversation, whenSavedElsewhere } from "./store.js";
import { merge } from "./tree.js";

const FORMAT = "ziphius-conversations";
const LARGEST_FILE = 50_000_000; // bytes

export class Library {
  // `changed(id)` is called where another tab has changed a conversation.
  constructor(changed) {
    this.conversations = loadConversations();
    whenSavedElsewhere((id, stored) => {
      const ours = this.conversations.find((conversation) => conversation.id === id);
      if (!stored) this.#drop(id);
      else if (ours) merge(ours, stored);
      else this.conversations.push(stored);
      this.#sort();
      changed(id);
    });
  }

  // False where the browser's room is full: it stays here, and is lost with the page.
  keep(conversation) {
    if (!this.conversations.includes(conversation)) this.conversations.push(conversation);
    this.#sort();
    return saveConversation(conversation);
  }

  // Deletes them. What comes back is a function that undoes it.
  remove(gone) {
    for (const { id } of gone) {
      eraseConversation(id);
      this.#drop(id);
    }
    return () => gone.every((conversation) => this.keep(conversation));
  }

  // Those whose title or messages hold all the words.
  search(text) {
    const words = text.toLowerCase().split(/\s+/).filter(Boolean);
    return this.conversations.filter(({ title, messages }) => {
      const all = [title, ...messages.map(({ content }) => content)].join("\n").toLowerCase();
      return words.every((word) => all.includes(word));
    });
  }

  exported() {
    return JSON.stringify({ format: FORMAT, version: 1, conversations: this.conversations }, null, 1);
  }

  // Takes in a file that `exported` wrote; what is here already is not doubled. Throws an Error with what is wrong.
  // {read, refused, kept}: how many came, how many were none, whether there was room for all.
  async take(file) {
    if (file.size > LARGEST_FILE) throw new Error(`${file.name} is larger than ${LARGEST_FILE / 1e6} MB.`);
    let raw = null;
    try {
      raw = JSON.parse(await file.text());
    } catch {
      throw new Error(`${file.name} is not JSON.`);
    }
    if (raw?.format !== FORMAT || !Array.isArray(raw.conversations)) {
      throw new Error(`${file.name} holds no conversations that were exported here.`);
    }
    const found = raw.conversations.map(checkedConversation).filter(Boolean);
    let kept = true;
    for (const conversation of found) {
      const ours = this.conversations.find(({ id }) => id === conversation.id);
      if (ours) merge(ours, conversation);
      kept = this.keep(ours ?? conversation) && kept;
    }
    return { read: found.length, refused: raw.conversations.length - found.length, kept };
  }

  #drop(id) {
    this.conversations = this.conversations.filter((conversation) => conversation.id !== id);
  }

  #sort() {
    this.conversations.sort((a, b) => b.updated - a.updated);
  }
}
