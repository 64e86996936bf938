// The answers under way: one a conversation at most, and as many conversations as a reader likes.

import { write } from "./writing.js";

export class Answers {
  // `piece(conversation, message)` and `ended(conversation, message)` are called as they come.
  constructor({ piece, ended }) {
    Object.assign(this, { piece, ended });
    this.underWay = new Map(); // a conversation's id -> {message, control}
    this.leaving = false;
    addEventListener("beforeunload", () => (this.leaving = true));
  }

  // The message that is being written in it, if one is.
  in({ id }) {
    return this.underWay.get(id)?.message;
  }

  // Have `message` written, or gone on with; `ask` and `key` as in writing.js.
  async begin(conversation, message, ask, key) {
    const control = new AbortController();
    this.underWay.set(conversation.id, { message, control });
    await write(message, ask, key, control, () => this.piece(conversation, message));
    // a page that goes takes its connections with it, which is no fault to keep: it does not live to the end of this
    if (this.leaving) await new Promise((go) => setTimeout(go, 2000));
    this.leaving = false;
    this.underWay.delete(conversation.id);
    this.ended(conversation, message);
  }

  stop({ id }) {
    this.underWay.get(id)?.control.abort();
  }
}
