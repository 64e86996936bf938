// The service's API: the model's card, and an answer as it is written.

// A refusal: its sentence, the HTTP status, and the API's code.
export class Refusal extends Error {
  constructor(message, status, code) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

// {id, context_length, examples}
export async function modelCard(key) {
  const response = await fetch("v1/models", { headers: headers(key) });
  if (!response.ok) throw await refusal(response);
  return (await response.json()).data[0];
}

// Yields {reasoning, content, calls, finish, usage} as they come. Aborting `signal` stops the work at the server.
export async function* answer(body, key, signal) {
  const response = await fetch("v1/chat/completions", {
    method: "POST",
    headers: headers(key),
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  if (!response.ok) throw await refusal(response);
  for await (const text of events(response.body)) {
    if (text === "[DONE]") return;
    const chunk = JSON.parse(text);
    if (chunk.error) throw new Refusal(chunk.error.message, response.status, chunk.error.code);
    const { delta = {}, finish_reason: finish } = chunk.choices[0] ?? {};
    yield {
      reasoning: delta.reasoning_content ?? "",
      content: delta.content ?? "",
      calls: delta.tool_calls ?? [],
      finish: finish ?? null,
      usage: chunk.usage ?? null, // on the last chunk of a choice, or on one of its own behind it
    };
  }
}

async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (held + value).split("\n");
    held = lines.pop();
    for (const line of lines) if (line.startsWith("data: ")) yield line.slice(6);
  }
}

function headers(key) {
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

async function refusal(response) {
  try {
    const { message, code } = (await response.json()).error;
    return new Refusal(message, response.status, code);
  } catch {
    return new Refusal(`The server answered ${response.status}.`, response.status, null);
  }
}
