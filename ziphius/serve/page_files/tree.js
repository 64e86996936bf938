// A conversation as a tree. Every question and every answer stays; other wordings and other answers stand beside the
// first, and the path to `head` is what is shown and sent.

export function newConversation() {
  return { id: newId(), title: "New conversation", named: false, updated: Date.now(), head: null, messages: [] };
}

export function newId() {
  return `${Date.now().toString(36)}-${Math.random().toString(36).slice(2)}`;
}

// A new message below `parent` (a message, or null); it is where the conversation goes on.
export function add(conversation, parent, message) {
  const added = { id: newId(), parent: parent?.id ?? null, ...message };
  conversation.messages.push(added);
  conversation.head = added.id;
  conversation.updated = Date.now();
  return added;
}

// From the first question down to `message`, or to where the conversation stands.
export function pathTo(conversation, id = conversation.head) {
  const all = new Map(conversation.messages.map((message) => [message.id, message]));
  const path = [];
  for (let at = all.get(id); at; at = all.get(at.parent)) path.push(at);
  return path.reverse();
}

export function parentOf(conversation, message) {
  return conversation.messages.find(({ id }) => id === message.parent) ?? null;
}

// The messages in whose place one can stand: itself among them, the oldest first.
export function besides(conversation, message) {
  return conversation.messages.filter(({ parent }) => parent === message.parent);
}

// Go on from `message`: where it was last gone on with.
export function choose(conversation, message) {
  const below = new Set([message.id]);
  for (const { id, parent } of conversation.messages) if (below.has(parent)) below.add(id);
  conversation.head = [...below].at(-1);
}

// What another tab, or a file, has of the same conversation comes to ours. Messages only grow: the longer is the later.
export function merge(ours, theirs) {
  const all = new Map(ours.messages.map((message) => [message.id, message]));
  for (const message of theirs.messages) {
    const known = all.get(message.id);
    if (!known) ours.messages.push(message);
    else if (size(message) > size(known)) Object.assign(known, message);
  }
  if (theirs.updated > ours.updated) {
    const { title, named, updated } = theirs;
    Object.assign(ours, { title, named, updated });
  }
  // where they went on from where we stand, we are there, too
  if (!ours.head || pathTo(ours, theirs.head).some(({ id }) => id === ours.head)) ours.head = theirs.head;
}

function size(message) {
  return message.content.length + message.reasoning.length + (message.finish ? 1 : 0);
}
