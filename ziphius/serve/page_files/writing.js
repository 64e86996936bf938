// An answer being written: the stream's pieces put into its message, and how it ended.

import { answer, Refusal } from "./api.js";
import { usageOf } from "./check.js";

const NO_ANSWER = {
  length: "There was no answer within the limit; allow it more tokens in the settings.",
  stop: "The model ended its turn without an answer. Ask again, or in the words that it was trained on.",
};
const MOST = 4_000_000; // characters of an answer that a page can hold

// Fills `message` until its end; `ask()` resolves to the request's body, `changed()` is called after each piece. Never
// throws: `message.finish` says how it ended ("stop", "length", "tool_calls"; "stopped" by the reader, "failed", "lost"
// with the connection), `message.fault` what there is to say about it.
export async function write(message, ask, key, control, changed) {
  const before = { ...message }; // an answer that is gone on with has a bill already
  const began = performance.now();
  const end = {};
  let finish = null;
  let usage = null;
  forgetEnd(message);
  try {
    for await (const piece of answer(await ask(), key, control.signal)) {
      message.reasoning += piece.reasoning;
      message.content += piece.content;
      for (const call of piece.calls) addCall(message, call);
      const seconds = (performance.now() - began) / 1000;
      message.seconds = (before.seconds ?? 0) + seconds;
      if (!message.content) message.thinkingSeconds = (before.thinkingSeconds ?? 0) + seconds;
      finish = piece.finish ?? finish;
      usage = piece.usage ?? usage;
      if (lengthOf(message) > MOST) throw new Error("The answer is longer than this page can hold.");
      changed();
    }
    end.finish = finish ?? "lost";
    if (!finish) end.fault = "The connection ended before the answer did.";
    else if (!message.content && !message.calls?.length) end.fault = NO_ANSWER[finish] ?? "There was no answer.";
  } catch (error) {
    if (control.signal.aborted) end.finish = "stopped";
    else Object.assign(end, { finish: "failed" }, faultOf(error));
    control.abort(); // the server need not go on
  }
  forgetEnd(message); // what was kept of it may have come back meanwhile, with its earlier end
  const bill = usage ? added(before.usage, usageOf(usage)) : before.usage;
  Object.assign(message, end, bill ? { usage: bill } : {});
}

function forgetEnd(message) {
  for (const name of ["finish", "fault", "code", "usage"]) delete message[name];
}

export function faultOf(error) {
  if (error instanceof Refusal) {
    const code = error.status === 401 ? "key" : error.code === "context_length_exceeded" ? "full" : undefined;
    const fault = code === "key" ? "This service asks for a key: enter it in Settings." : error.message;
    return code ? { fault, code } : { fault };
  }
  return { fault: error instanceof TypeError ? "The server cannot be reached." : error.message };
}

function addCall(message, { index, function: part = {} }) {
  if (!Number.isInteger(index) || index < 0 || index > 127) return;
  message.calls ??= [];
  while (message.calls.length <= index) message.calls.push({ name: "", arguments: "" });
  message.calls[index].name += part.name ?? "";
  message.calls[index].arguments += part.arguments ?? "";
}

function lengthOf({ reasoning, content, calls = [] }) {
  return calls.reduce((sum, call) => sum + call.name.length + call.arguments.length, reasoning.length + content.length);
}

// Two bills of one answer: what was written adds up, what was read is what was read last.
function added(before, usage) {
  if (!before) return usage;
  const [price, more] = [before.ziphius, usage.ziphius];
  const listed = more.list_price && {
    model: more.list_price.model,
    dollars: more.list_price.dollars + (price.list_price?.dollars ?? 0),
  };
  return {
    ...usage,
    completion_tokens: before.completion_tokens + usage.completion_tokens,
    completion_tokens_details: { reasoning_tokens: thought(before) + thought(usage) },
    ziphius: { dollars: price.dollars + more.dollars, list_price: listed },
  };
}

function thought(usage) {
  return usage.completion_tokens_details.reasoning_tokens;
}
