// What an answer took: tokens, speed and price, and what the same tokens cost by the price list.

import { element } from "./dom.js";

export function billLine({ usage, seconds, finish }) {
  const parts = [];
  if (usage) {
    const { dollars, list_price: listed } = usage.ziphius;
    parts.push(`${usage.completion_tokens} tokens`);
    if (seconds) parts.push(`${Math.round(usage.completion_tokens / seconds)} tokens/s`);
    const cached = usage.prompt_cache_hit_tokens;
    if (cached) parts.push(`${cached} of ${usage.prompt_tokens} read from cache`);
    if (dollars) parts.push(money(dollars));
    if (listed) parts.push(`${listed.model} list price ${money(listed.dollars)}`);
  }
  if (finish === "length") parts.push("cut off at the longest answer");
  if (finish === "stopped") parts.push("stopped");
  if (!finish) parts.push("not finished"); // its page was closed, or another tab still writes it
  return element("span", { className: "bill", textContent: parts.join(" · ") });
}

function money(amount) {
  return `$${amount >= 0.01 ? amount.toFixed(2) : Number(amount.toPrecision(2)).toFixed(10).replace(/0+$/, "")}`;
}
