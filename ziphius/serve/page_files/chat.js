// The page: conversations, the question, an answer under way.

import { answer, modelName } from "./api.js";
import { AnswerView, element, questionView } from "./message.js";
import {
  loadConversations, loadSettings, newConversation, saveConversations, saveSettings, whenSavedElsewhere,
} from "./store.js";

const $ = (id) => document.getElementById(id);
const NO_ANSWER = {
  length: "There was no answer within the limit; allow it more tokens in the settings.",
  stop: "The model ended its turn without an answer. Ask again, or in the words that it was trained on.",
};
const SAMPLING = ["temperature", "top_p", "max_tokens", "seed"];

const conversations = loadConversations();
const settings = loadSettings();
let here = conversations[0] ?? newConversation();
let model = null;
let working = null; // the AbortController of an answer under way

// --- an answer ---------------------------------------------------------------------------------------------------

async function ask() {
  const conversation = here;
  const message = { role: "assistant", content: "", reasoning: "" };
  const view = new AnswerView(() => again(conversation, message));
  $("messages").append(view.place);
  const control = new AbortController();
  busy(control);
  const began = performance.now();
  try {
    model ??= await modelName(settings.key);
    for await (const piece of answer(request(conversation), settings.key, control.signal)) {
      message.reasoning += piece.reasoning;
      message.content += piece.content;
      message.seconds = (performance.now() - began) / 1000;
      if (!message.content) message.thinkingSeconds = message.seconds;
      if (piece.usage !== undefined) Object.assign(message, { usage: piece.usage, finish: piece.finish ?? "lost" });
      follow(() => view.update(message));
    }
    if (!message.content) message.fault = NO_ANSWER[message.finish] ?? "The connection ended before the answer came.";
  } catch (error) {
    message.finish = control.signal.aborted ? "stopped" : "failed";
    if (!control.signal.aborted) message.fault = sentence(error);
  }
  conversation.messages.push(message);
  follow(() => view.finish(message));
  busy(null);
  say(message.fault ?? (message.finish === "stopped" ? "Stopped." : "The answer is there."));
  keep();
}

function request(conversation) {
  const messages = conversation.messages.map(({ role, content }) => ({ role, content }));
  if (settings.system?.trim()) messages.unshift({ role: "system", content: settings.system });
  const body = { model, messages, stream_options: { include_usage: true } };
  for (const name of SAMPLING) if (settings[name] !== undefined && settings[name] !== "") body[name] = Number(settings[name]);
  if (settings.think === false) body.thinking = { type: "disabled" };
  else if (settings.budget) body.thinking = { type: "enabled", budget_tokens: Number(settings.budget) };
  return body;
}

function again(conversation, message) {
  if (working) return;
  const place = conversation.messages.indexOf(message);
  if (place >= 0) conversation.messages.length = place;
  draw();
  ask();
}

function edit(place, text) {
  if (working) return;
  here.messages.length = place;
  send(text);
}

function send(text) {
  here.messages.push({ role: "user", content: text });
  if (here.messages.length === 1) here.title = text.slice(0, 60);
  conversations.splice(0, conversations.length, here, ...conversations.filter((other) => other.id !== here.id));
  keep();
  draw();
  $("messages").scrollTop = $("messages").scrollHeight;
  ask();
}

function busy(control) {
  working = control;
  $("send").hidden = Boolean(control);
  $("stop").hidden = !control;
  if (control) say("The model is writing.");
}

function sentence(error) {
  return error instanceof TypeError ? "The server cannot be reached." : error.message;
}

function say(text) {
  $("status").textContent = text;
}

// Change the page, and stay at its end if that is where the reader is.
function follow(change) {
  const box = $("messages");
  const atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 80;
  change();
  if (atEnd) requestAnimationFrame(() => requestAnimationFrame(() => (box.scrollTop = box.scrollHeight)));
}

// --- the page ----------------------------------------------------------------------------------------------------

function draw() {
  const conversation = here;
  const views = conversation.messages.map((message, place) => {
    if (message.role === "user") return questionView(message.content, (text) => edit(place, text));
    const view = new AnswerView(() => again(conversation, message));
    view.finish(message);
    return view.place;
  });
  const empty = element("p", { className: "empty", textContent: "Ask something. You will see it think, then answer." });
  $("messages").replaceChildren(...(views.length ? views : [empty]));
  list();
}

function list() {
  const entries = conversations.map((conversation) => {
    const name = element("button", { type: "button", className: "name", textContent: conversation.title });
    name.onclick = () => open(conversation);
    const drop = element("button", { type: "button", className: "drop", textContent: "✕" });
    drop.setAttribute("aria-label", `Delete “${conversation.title}”`);
    drop.onclick = () => remove(conversation);
    const entry = element("li", { className: conversation.id === here.id ? "here" : "" }, name, drop);
    if (conversation.id === here.id) name.setAttribute("aria-current", "true");
    return entry;
  });
  $("conversations").replaceChildren(...entries);
}

function open(conversation) {
  working?.abort();
  here = conversation;
  draw();
  side(false);
  $("messages").scrollTop = $("messages").scrollHeight;
  $("question").focus();
}

function remove(conversation) {
  conversations.splice(conversations.indexOf(conversation), 1);
  if (conversation.id === here.id) open(conversations[0] ?? newConversation());
  keep();
  list();
}

function keep() {
  saveConversations(conversations);
}

function side(shown) {
  $("side").classList.toggle("open", shown);
  $("shade").hidden = !shown;
}

function colours() {
  const dark = settings.theme ? settings.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  $("code-light").media = dark ? "not all" : "all";
  $("code-dark").media = dark ? "all" : "not all";
}

function fit() {
  const field = $("question");
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight}px`;
}

$("ask").onsubmit = (event) => {
  event.preventDefault();
  const text = $("question").value.trim();
  if (!text || working) return;
  $("question").value = "";
  fit();
  send(text);
};
$("question").oninput = fit;
$("question").onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("ask").requestSubmit();
  }
};
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  working?.abort();
  side(false);
});
$("stop").onclick = () => {
  working?.abort();
  $("question").focus();
};
$("think").onclick = () => {
  settings.think = settings.think === false;
  $("think").setAttribute("aria-pressed", settings.think !== false);
  saveSettings(settings);
};
$("new").onclick = () => open(newConversation());
$("open-side").onclick = () => side(true);
$("close-side").onclick = $("shade").onclick = () => side(false);

const form = $("settings").querySelector("form");
$("open-settings").onclick = () => {
  for (const field of form.elements) if (field.name) field.value = settings[field.name] ?? "";
  $("settings").showModal();
};
form.oninput = () => {
  for (const field of form.elements) if (field.name) settings[field.name] = field.value;
  saveSettings(settings);
  colours();
};
$("settings").onclose = () => greet();
$("forget").onclick = () => {
  if (!confirm("Delete all conversations kept in this browser?")) return;
  conversations.length = 0;
  keep();
  open(newConversation());
};

async function greet() {
  try {
    model = await modelName(settings.key);
    $("model").textContent = model;
    document.title = `${model} · Ziphius`;
  } catch (error) {
    $("model").textContent = sentence(error);
  }
}

whenSavedElsewhere(() => {
  const mine = conversations.filter((conversation) => conversation.id === here.id);
  const others = loadConversations().filter((conversation) => conversation.id !== here.id);
  conversations.splice(0, conversations.length, ...mine, ...others);
  list();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", colours);
$("think").setAttribute("aria-pressed", settings.think !== false);
colours();
addEventListener("DOMContentLoaded", draw);
if (document.readyState !== "loading") draw();
greet();
$("question").focus();
