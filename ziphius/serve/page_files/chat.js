// The page: which conversation is open, what is being written, and what the buttons do.

import { Answers } from "./answers.js";
import { modelCard } from "./api.js";
import { exportAll, initArchive } from "./archive.js";
import { titleOf } from "./check.js";
import { Composer } from "./composer.js";
import { $, rarely } from "./dom.js";
import { emptyView } from "./empty.js";
import { showGauge } from "./gauge.js";
import { formatAgain, plainOnly } from "./guard.js";
import { greet } from "./header.js";
import { Library } from "./library.js";
import { answeredTurns, begun, requestBody } from "./request.js";
import { initSettings, openSettings, settings } from "./settings.js";
import { Side } from "./side.js";
import { Thread } from "./thread.js";
import { toast } from "./toast.js";
import { add, choose, newConversation, parentOf, pathTo } from "./tree.js";
import { warmUp } from "./typesetter.js";

const KEEP_MS = 3000; // between two savings of an answer that is being written

const library = new Library(changedElsewhere);
const answers = new Answers({ piece: arrived, ended });
let here = library.conversations[0] ?? newConversation();
let card = null; // the model's
let full = false; // the browser's room was, at the last saving
const keepWritten = rarely(KEEP_MS, () => library.conversations.filter((all) => answers.in(all)).forEach(keep));

const composer = new Composer(send);
const thread = new Thread($("messages"), actsOn, () => emptyView(card?.examples, take));
const side = new Side({
  open,
  remove: (conversation) => remove([conversation], `“${conversation.title}” is deleted.`),
  rename: (conversation, title) => {
    Object.assign(conversation, { title, named: true, updated: Date.now() });
    keep(conversation);
  },
  found: (text) => (text ? library.search(text) : library.conversations),
  isHere: (conversation) => conversation === here,
  isWriting: (conversation) => Boolean(answers.in(conversation)),
});

// --- asking ------------------------------------------------------------------------------------------------------

function send(text, files = []) {
  if (isBusy()) return false;
  ask(pathTo(here).at(-1) ?? null, text, files);
  return true;
}

function ask(parent, content, files) {
  if (!parent && !here.named) here.title = titleOf(content || files[0].name);
  const question = add(here, parent, { role: "user", content, reasoning: "", files });
  answerTo(question);
}

function answerTo(question) {
  const omit = Math.max(0, ...pathTo(here, question.id).map((message) => message.omit ?? 0));
  const message = add(here, question, { role: "assistant", content: "", reasoning: "", ...(omit ? { omit } : {}) });
  begin(message);
  thread.show(here, message);
  thread.follow();
}

// Have `message` of the conversation that is open written, or gone on with.
function begin(message) {
  const conversation = here;
  const body = async () => {
    card ??= await modelCard(settings.key);
    return requestBody(card.id, pathTo(conversation, message.id), settings);
  };
  answers.begin(conversation, message, body, settings.key);
  keep(conversation);
  showState();
  say("The model is writing.");
}

function arrived(conversation, message) {
  thread.view(message)?.update();
  keepWritten();
}

function ended(conversation, message) {
  if (library.conversations.includes(conversation)) keep(conversation); // it may have been deleted meanwhile
  showState();
  thread.view(message)?.finish();
  const how = message.fault ?? (message.finish === "stopped" ? "Stopped." : "The answer is there.");
  if (conversation === here) say(how);
  else if (message.finish !== "stopped") toast(`“${conversation.title}”: ${how}`, { Open: () => open(conversation) });
}

// What can be done with a message of the conversation that is open.
function actsOn(message) {
  const question = parentOf(here, message);
  const turns = answeredTurns(pathTo(here, message.id).slice(0, -2)).length - (message.omit ?? 0);
  const idle = (act) => (...given) => !isBusy() && act(...given);
  return {
    edit: idle((text) => {
      ask(question, text, message.files);
      composer.focus();
    }),
    again: idle(() => {
      if (begun(message) || message.calls?.length) answerTo(question);
      else repeat(message); // nothing would be lost
      composer.focus();
    }),
    goOn: idle(() => {
      repeat(message);
      composer.focus();
    }),
    leaveOut: turns > 0 && idle(() => {
      message.omit = (message.omit ?? 0) + Math.ceil(turns / 2);
      repeat(message);
    }),
    startAnew: () => {
      open(newConversation());
      send(question.content, question.files);
    },
    enterKey: () => openSettings("key"),
    choose: (other) => {
      const label = document.activeElement?.getAttribute("aria-label");
      choose(here, other);
      keep(here);
      thread.show(here, answers.in(here));
      showState();
      thread.view(other)?.place.querySelector(`.branches [aria-label="${label}"]:enabled, .branches :enabled`)?.focus();
    },
  };
}

function repeat(message) {
  begin(message);
  thread.view(message)?.start();
  thread.follow();
}

function isBusy() {
  if (!answers.in(here)) return false;
  toast("An answer is being written here: stop it first.");
  return true;
}

// --- conversations -----------------------------------------------------------------------------------------------

function open(conversation) {
  here = conversation;
  thread.show(here, answers.in(here));
  thread.follow();
  showState();
  side.show(false);
  composer.focus();
}

function remove(gone, sentence) {
  gone.forEach((conversation) => answers.stop(conversation));
  const undo = library.remove(gone);
  const away = gone.includes(here);
  if (away) open(library.conversations[0] ?? newConversation());
  else {
    showState();
    $("new").focus(); // the button that had it is gone
  }
  toast(sentence, {
    Undo: () => {
      undo();
      if (away) open(gone[0]);
      else showState();
    },
  });
}

function keep(conversation) {
  const fits = library.keep(conversation);
  if (!fits && !full) {
    const lost = "what is new is lost when the page closes. Export them, or delete some.";
    toast(`This browser's room for conversations is full: ${lost}`, { Export: () => exportAll(library) });
  }
  full = !fits;
  side.draw();
}

function changedElsewhere(id) {
  side.draw();
  const reading = document.activeElement?.closest(".message textarea");
  if (id === here.id && !answers.in(here) && !reading) thread.show(here);
}

function take(text) {
  composer.put(text);
  composer.focus();
}

// --- the page ----------------------------------------------------------------------------------------------------

function showState() {
  const busy = Boolean(answers.in(here));
  $("send").hidden = busy;
  $("stop").hidden = !busy;
  showGauge(here, card?.context_length);
  side.draw();
}

function say(text) {
  $("status").textContent = text;
}

async function meet() {
  card = (await greet(settings.key)) ?? card;
  showState();
  if (!here.messages.length) thread.show(here); // with the folder's examples
}

document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || $("settings").open) return;
  if (!side.show(false)) answers.stop(here);
});
$("stop").onclick = () => {
  answers.stop(here);
  composer.focus();
};
$("new").onclick = () => open(newConversation());
$("format").onclick = () => {
  formatAgain();
  $("plain").hidden = true;
  open(here);
};
$("plain").hidden = !plainOnly;
initSettings(meet);
initArchive(
  library,
  () => open(library.conversations[0] ?? here),
  () => remove([...library.conversations], "All conversations are deleted."),
);
open(here);
meet();
if (!plainOnly) warmUp();
