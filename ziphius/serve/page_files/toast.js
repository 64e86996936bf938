// A line at the page's foot for some seconds, with something that can be done about it.

import { $, button, element } from "./dom.js";

const SECONDS = 10;

// `ways`: {label: act}. A toast goes by itself, or when something has been done.
export function toast(text, ways = {}) {
  const shown = element("div", { className: "toast" }, element("span", { textContent: text }));
  const leave = () => shown.remove();
  for (const [label, act] of Object.entries(ways)) {
    shown.append(button(label, () => {
      leave();
      act();
    }));
  }
  shown.append(button("✕", leave, { name: "Close this message", className: "sign" }));
  $("toasts").append(shown);
  while ($("toasts").childElementCount > 3) $("toasts").firstElementChild.remove();
  const later = () => setTimeout(() => (shown.matches(":hover, :focus-within") ? later() : leave()), SECONDS * 1000);
  later();
}
