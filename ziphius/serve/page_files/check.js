// What comes from the browser's storage or from a file, field by field: whatever is not as it should be is left out.

import { newId } from "./tree.js";

const FINISHES = new Set(["stop", "length", "tool_calls", "stopped", "failed", "lost"]);
const SETTINGS = [
  "system", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens", "budget", "seed", "theme",
  "key",
];

// A conversation, or null where `raw` is none. Messages without `parent` follow each other, as they were kept once.
export function checkedConversation(raw) {
  if (!isObject(raw) || !Array.isArray(raw.messages)) return null;
  const messages = [];
  const kept = new Map(); // ids as they were -> the nearest message that is kept
  let before = null;
  for (const entry of raw.messages) {
    if (!isObject(entry)) continue;
    const known = entry.parent === undefined ? before : (kept.get(entry.parent) ?? null);
    const message = checkedMessage(entry);
    if (!message) {
      if (isText(entry.id)) kept.set(entry.id, known);
      continue;
    }
    message.id = isText(entry.id) && !kept.has(entry.id) ? entry.id : newId();
    message.parent = known;
    kept.set(message.id, message.id);
    messages.push(message);
    before = message.id;
  }
  if (!messages.length) return null;
  const title = isText(raw.title) && raw.title.trim() ? raw.title : messages[0].content;
  return {
    id: isText(raw.id) && /^[\w-]{1,80}$/.test(raw.id) ? raw.id : newId(),
    title: titleOf(title),
    named: raw.named === true, // by the reader
    updated: number(raw.updated) ?? 0,
    head: kept.get(raw.head) ?? before,
    messages,
  };
}

// One line to find a conversation by. Marks that turn the direction of a text would turn the list's.
export function titleOf(text) {
  const line = text.replace(/[\p{Cc}\p{Cf}\s]+/gu, " ").replace(/(\p{M}{2})\p{M}+/gu, "$1").trim();
  return [...line.slice(0, 200)].slice(0, 60).join("") || "Untitled";
}

export function checkedSettings(raw) {
  const settings = {};
  if (!isObject(raw)) return settings;
  for (const name of SETTINGS) if (isText(raw[name])) settings[name] = raw[name];
  if (raw.think === false) settings.think = false;
  return settings;
}

function checkedMessage(raw) {
  if (raw.role === "user") {
    if (!isText(raw.content)) return null;
    const files = list(raw.files).filter(({ name, text }) => isText(name) && isText(text));
    const whole = files.map(({ name, text }) => ({ name, text }));
    return { role: "user", content: raw.content, reasoning: "", files: whole };
  }
  if (raw.role !== "assistant") return null;
  const calls = list(raw.calls).filter(({ name, arguments: given }) => isText(name) && isText(given));
  return plain({
    role: "assistant",
    content: isText(raw.content) ? raw.content : "",
    reasoning: isText(raw.reasoning) ? raw.reasoning : "",
    calls: calls.map(({ name, arguments: given }) => ({ name, arguments: given })),
    finish: FINISHES.has(raw.finish) ? raw.finish : undefined,
    fault: isText(raw.fault) ? raw.fault : undefined,
    code: isText(raw.code) ? raw.code : undefined,
    seconds: number(raw.seconds),
    thinkingSeconds: number(raw.thinkingSeconds),
    omit: number(raw.omit),
    usage: usageOf(raw.usage),
  });
}

// The counts of an answer as the API gives them: those that the page shows.
export function usageOf(raw) {
  if (!isObject(raw)) return undefined;
  const price = isObject(raw.ziphius) ? raw.ziphius : {};
  const listed = isObject(price.list_price) && isText(price.list_price.model) ? price.list_price : null;
  return plain({
    prompt_tokens: number(raw.prompt_tokens) ?? 0,
    completion_tokens: number(raw.completion_tokens) ?? 0,
    total_tokens: number(raw.total_tokens) ?? 0,
    prompt_cache_hit_tokens: number(raw.prompt_cache_hit_tokens) ?? 0,
    completion_tokens_details: { reasoning_tokens: number(raw.completion_tokens_details?.reasoning_tokens) ?? 0 },
    ziphius: {
      dollars: number(price.dollars) ?? 0,
      list_price: listed && { model: listed.model.slice(0, 80), dollars: number(listed.dollars) ?? 0 },
    },
  });
}

function plain(fields) {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined));
}

function list(value) {
  return Array.isArray(value) ? value.filter(isObject) : [];
}

function number(value) {
  return Number.isFinite(value) && value >= 0 ? value : undefined;
}

function isText(value) {
  return typeof value === "string";
}

function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
