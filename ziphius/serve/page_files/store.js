// Conversations and settings, kept in this browser.

const CONVERSATIONS = "ziphius.conversations";
const SETTINGS = "ziphius.settings";

export function loadConversations() {
  return read(CONVERSATIONS, []);
}

export function saveConversations(conversations) {
  const kept = conversations.filter((conversation) => conversation.messages.length);
  while (!write(CONVERSATIONS, kept) && kept.length > 1) kept.pop(); // the browser's room is full: the oldest goes
}

// Another tab of this browser has saved: without its conversations, the next save here would undo them.
export function whenSavedElsewhere(act) {
  addEventListener("storage", (event) => event.key === CONVERSATIONS && act());
}

export function loadSettings() {
  return read(SETTINGS, {});
}

export function saveSettings(settings) {
  write(SETTINGS, settings);
}

export function newConversation() {
  return { id: `${Date.now()}-${Math.random().toString(36).slice(2)}`, title: "New conversation", messages: [] };
}

function read(key, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(key)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

function write(key, value) {
  try {
    localStorage.setItem(key, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}
