// Small helpers to make elements.

export const $ = (id) => document.getElementById(id);

export function element(kind, properties = {}, ...children) {
  const made = Object.assign(document.createElement(kind), properties);
  made.append(...children);
  return made;
}

// A button; `name` is what a screen reader says where `text` is a sign.
export function button(text, act, { name, className = "" } = {}) {
  const made = element("button", { type: "button", textContent: text, className, onclick: act });
  if (name) {
    made.setAttribute("aria-label", name);
    made.title = name;
  }
  return made;
}

// The same call, at most once in `ms`.
export function rarely(ms, act) {
  let timer = null;
  return () => {
    timer ??= setTimeout(() => {
      timer = null;
      act();
    }, ms);
  };
}
