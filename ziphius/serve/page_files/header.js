// The head of the page: the model's name, or what keeps the page from it, with the way to mend that.

import { modelCard } from "./api.js";
import { $ } from "./dom.js";
import { openSettings } from "./settings.js";
import { faultOf } from "./writing.js";

// Shows the model and gives its card; null where it cannot be had.
export async function greet(key) {
  $("enter-key").onclick = () => openSettings("key");
  try {
    const card = await modelCard(key);
    $("model").textContent = card.id;
    $("enter-key").hidden = true;
    document.title = `${card.id} · Ziphius`;
    return card;
  } catch (error) {
    const { fault, code } = faultOf(error);
    $("model").textContent = code === "key" && key ? "This service does not take that key: enter another." : fault;
    $("enter-key").hidden = code !== "key";
    return null;
  }
}
