// How much of the model's context the conversation fills.

import { $ } from "./dom.js";
import { pathTo } from "./tree.js";

// Shows it of the path's last answer that has a bill; nothing where none has, or the model's context is not known.
export function showGauge(conversation, context) {
  const used = pathTo(conversation).findLast(({ usage }) => usage)?.usage.total_tokens;
  $("gauge").hidden = !used || !context;
  if ($("gauge").hidden) return;
  const share = Math.min(1, used / context);
  $("gauge-bar").value = share;
  $("gauge").classList.toggle("nearly", share > 0.85);
  $("gauge-text").textContent = `${used.toLocaleString("en")} of ${context.toLocaleString("en")} tokens`;
}
