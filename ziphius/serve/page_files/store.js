// The browser's storage: a key a conversation, so that two tabs write over nothing of each other's.

import { checkedConversation, checkedSettings } from "./check.js";
import { merge } from "./tree.js";

const CONVERSATION = "ziphius.conversation.";
const ASIDE = "ziphius.aside.";
const SETTINGS = "ziphius.settings";
const ONE_LIST = "ziphius.conversations"; // where all were kept once

// All conversations. What is none is set aside under another key, where it harms no start.
export function loadConversations() {
  const found = [];
  for (const key of keys(CONVERSATION)) {
    const text = read(key);
    const conversation = checkedConversation(parsed(text));
    if (conversation && key === CONVERSATION + conversation.id) found.push(conversation);
    else setAside(key, text);
  }
  return [...found, ...fromOneList()].sort((a, b) => b.updated - a.updated);
}

function loadConversation(id) {
  return checkedConversation(parsed(read(CONVERSATION + id)));
}

// False where the browser has no room for it: then what was kept of it before still is.
export function saveConversation(conversation) {
  const stored = loadConversation(conversation.id);
  if (stored) merge(conversation, stored);
  return write(CONVERSATION + conversation.id, JSON.stringify(conversation));
}

export function eraseConversation(id) {
  remove(CONVERSATION + id);
}

// Another tab of this browser has saved or erased (`stored` is null) a conversation.
export function whenSavedElsewhere(act) {
  addEventListener("storage", ({ key }) => {
    if (!key?.startsWith(CONVERSATION)) return;
    const id = key.slice(CONVERSATION.length);
    act(id, loadConversation(id));
  });
}

// What was found damaged, as it was.
export function asides() {
  return keys(ASIDE).map(read);
}

export function eraseAsides() {
  keys(ASIDE).forEach(remove);
}

export function loadSettings() {
  return checkedSettings(parsed(read(SETTINGS)));
}

export function saveSettings(settings) {
  return write(SETTINGS, JSON.stringify(settings));
}

// Moves them to keys of their own, one after the other: the room that one takes is free before the next comes.
function fromOneList() {
  const text = read(ONE_LIST);
  if (text === null) return [];
  const old = parsed(text);
  if (!Array.isArray(old)) {
    setAside(ONE_LIST, text);
    return [];
  }
  const found = [];
  const times = old.length;
  for (let moved = 0; moved < times; moved += 1) {
    const conversation = checkedConversation(old.pop());
    if (!conversation) continue;
    conversation.updated ||= moved + 1; // the newest stood first
    found.push(conversation);
    write(ONE_LIST, JSON.stringify(old));
    if (!saveConversation(conversation)) {
      write(ONE_LIST, JSON.stringify([...old, conversation]));
      return [...found, ...old.map(checkedConversation).filter(Boolean)];
    }
  }
  remove(ONE_LIST);
  return found;
}

function setAside(key, text) {
  remove(key);
  write(`${ASIDE}${key}`, text);
}

function keys(prefix) {
  try {
    return Object.keys(localStorage).filter((key) => key.startsWith(prefix));
  } catch {
    return [];
  }
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

function read(key) {
  try {
    return localStorage.getItem(key);
  } catch {
    return null;
  }
}

function write(key, text) {
  try {
    localStorage.setItem(key, text);
    return true;
  } catch {
    return false;
  }
}

function remove(key) {
  try {
    localStorage.removeItem(key);
  } catch {
    // no storage: nothing to remove
  }
}
