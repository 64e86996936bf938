// A conversation as the API's messages, and the settings as its fields.

const SAMPLING = ["temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens", "seed"];

// The body that asks for `message`, the last of `path`; what it holds already is gone on with.
export function requestBody(model, path, settings) {
  const message = path.at(-1);
  const turns = answeredTurns(path.slice(0, -2)).slice(message.omit ?? 0).flat();
  const messages = [...turns, path.at(-2)].map(plainMessage);
  if (settings.system?.trim()) messages.unshift({ role: "system", content: settings.system });
  const body = { model, messages };
  for (const name of SAMPLING) if (settings[name]?.trim()) body[name] = Number(settings[name]);
  if (settings.think === false) body.thinking = { type: "disabled" };
  else if (settings.budget?.trim()) body.thinking = { type: "enabled", budget_tokens: Number(settings.budget) };
  if (begun(message)) messages.push(prefix(message, body));
  return body;
}

// Questions with their answers. A question that got none is left out with it: it failed, or was stopped, and has been
// asked in other words since.
export function answeredTurns(path) {
  const turns = [];
  for (const [place, message] of path.entries()) {
    if (message.role === "assistant" && message.content) turns.push([path[place - 1], message]);
  }
  return turns;
}

export function begun(message) {
  return Boolean(message.content || message.reasoning);
}

// A question with its files behind it, each in a fence that nothing in it can close.
export function questionText({ content, files = [] }) {
  const parts = files.map(({ name, text }) => {
    const longest = Math.max(2, ...[...text.matchAll(/`+/g)].map(([run]) => run.length));
    const fence = "`".repeat(longest + 1);
    const kind = /\.(\w{1,12})$/.exec(name)?.[1] ?? "";
    return `${name}\n${fence}${kind}\n${text.replace(/\n$/, "")}\n${fence}`;
  });
  return [content, ...parts].filter(Boolean).join("\n\n");
}

function plainMessage(message) {
  return { role: message.role, content: message.role === "user" ? questionText(message) : message.content };
}

// The beginning of the answer. One that was thought about goes on from its thinking, which then must be on.
function prefix({ content, reasoning }, body) {
  if (!reasoning) return { role: "assistant", content, prefix: true };
  if (body.thinking?.type === "disabled") body.thinking = { type: "enabled" };
  return { role: "assistant", reasoning_content: reasoning, ...(content ? { content } : {}), prefix: true };
}
