// The messages of the conversation that is open.

import { AnswerView } from "./answer.js";
import { button, element } from "./dom.js";
import { drawing } from "./guard.js";
import { QuestionView } from "./question.js";
import { besides, pathTo } from "./tree.js";

const DRAWN = 40; // messages that are drawn at once; the earlier ones when asked for

export class Thread {
  // `acts(message)` gives what its view may do; `empty()` what stands where there is no message.
  constructor(box, acts, empty) {
    Object.assign(this, { box, acts, empty });
    this.inner = element("div", { className: "thread" });
    box.append(this.inner);
    this.views = new Map(); // by their messages' ids
    this.seers = new Map(); // by their places
    this.following = true;
    box.addEventListener("scroll", () => {
      if (this.atEnd()) this.following = true;
    });
    for (const kind of ["wheel", "touchmove", "keydown", "pointerdown"]) {
      box.addEventListener(kind, () => (this.following = false), { passive: true });
    }
    const near = { root: box, rootMargin: "100% 0px" };
    this.eyes = new IntersectionObserver((seen) => {
      for (const { target, isIntersecting } of seen) if (isIntersecting) this.seers.get(target)?.see();
    }, near);
    new ResizeObserver(() => this.following && this.toEnd()).observe(this.inner);
  }

  // `live` is the message that is being written.
  show(conversation, live) {
    for (const view of this.views.values()) view.leave();
    this.eyes.disconnect();
    this.views.clear();
    this.seers.clear();
    const path = pathTo(conversation);
    this.inner.replaceChildren();
    if (path.length) this.#draw(conversation, path, live);
    else this.inner.append(this.empty());
  }

  view(message) {
    return this.views.get(message.id);
  }

  follow() {
    this.following = true;
    this.toEnd();
  }

  atEnd() {
    return this.box.scrollHeight - this.box.scrollTop - this.box.clientHeight < 40;
  }

  toEnd() {
    this.box.scrollTop = this.box.scrollHeight;
  }

  #draw(conversation, path, live) {
    const late = path.slice(-DRAWN);
    const early = path.slice(0, -DRAWN);
    const views = late.map((message) => this.#made(conversation, message));
    const places = views.map(({ place }) => place);
    if (early.length) {
      const more = button(`Show ${early.length} earlier messages`, () => {
        this.following = false;
        const below = this.box.scrollHeight - this.box.scrollTop;
        more.remove();
        this.#draw(conversation, early, live);
        this.box.scrollTop = this.box.scrollHeight - below;
      }, { className: "earlier" });
      places.unshift(more);
    }
    this.inner.prepend(...places);
    drawing();
    for (const view of views) settle(view, live);
  }

  #made(conversation, message) {
    const Kind = message.role === "user" ? QuestionView : AnswerView;
    const view = new Kind(message, besides(conversation, message), this.acts(message));
    this.views.set(message.id, view);
    this.seers.set(view.place, view);
    this.eyes.observe(view.place);
    return view;
  }
}

// No message, whatever it holds, keeps the others from the page.
function settle(view, live) {
  try {
    if (view instanceof QuestionView) view.draw();
    else if (view.message === live) view.start();
    else view.finish();
  } catch (error) {
    const textContent = `This message cannot be shown: ${error.message}`;
    view.place.append(element("p", { className: "note", textContent }));
  }
}
