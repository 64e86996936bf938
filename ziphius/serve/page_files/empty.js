// What stands where no question has been asked: questions to begin with.

import { button, element } from "./dom.js";

const EXAMPLES = [
  "How many legs do 3 spiders and 2 ducks have in total?",
  "Why is the sea blue? Answer in three sentences.",
  "Write a Python function that says whether a number is prime.",
];

const ROOM = 320; // characters of examples, so that all are seen at once

// `examples` are the folder's own; `take(text)` gets the one that is clicked.
export function emptyView(examples, take) {
  let room = ROOM;
  const some = (examples?.length ? examples : EXAMPLES).slice(0, 4).filter((text, place) => {
    room -= text.length;
    return place === 0 || room >= 0;
  });
  const list = some.map((text) => {
    const shown = button(text, () => take(text), { className: "example" });
    shown.dir = "auto";
    return element("li", {}, shown);
  });
  return element(
    "div", { className: "empty" },
    element("p", { textContent: "Ask something. You will see it think, then answer." }),
    element("ul", { className: "examples" }, ...list),
  );
}
