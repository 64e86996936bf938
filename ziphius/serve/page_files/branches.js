// ‹ 2/3 ›: the way between messages that stand in each other's place.

import { button, element } from "./dom.js";

// `choose(message)` is called with the one to go to. Nothing where there is only one.
export function branches(all, message, choose) {
  if (all.length < 2) return [];
  const place = all.indexOf(message);
  const what = message.role === "user" ? "wording" : "answer";
  const before = button("‹", () => choose(all[place - 1]), { name: `Earlier ${what}`, className: "sign" });
  const after = button("›", () => choose(all[place + 1]), { name: `Later ${what}`, className: "sign" });
  before.disabled = place === 0;
  after.disabled = place === all.length - 1;
  const where = element("span", { textContent: `${place + 1}/${all.length}` });
  where.setAttribute("aria-label", `${what} ${place + 1} of ${all.length}`);
  where.setAttribute("role", "img"); // so that the label is read in the place of "2/3"
  const group = element("span", { className: "branches" }, before, where, after);
  group.setAttribute("role", "group");
  group.setAttribute("aria-label", what === "answer" ? "Other answers" : "Other wordings");
  return [group];
}
