// The service's API: the model's name, and an answer as it is written.

export async function modelName(key) {
  const response = await fetch("v1/models", { headers: headers(key) });
  if (!response.ok) throw new Error(await reason(response));
  return (await response.json()).data[0].id;
}

// Yields {reasoning, content} pieces and at the end {usage, finish}. Aborting `signal` stops the work at the server.
export async function* answer(body, key, signal) {
  const response = await fetch("v1/chat/completions", {
    method: "POST",
    headers: headers(key),
    body: JSON.stringify({ ...body, stream: true }),
    signal,
  });
  if (!response.ok) throw new Error(await reason(response));
  let finish = null;
  let usage = null;
  for await (const text of events(response.body)) {
    if (text === "[DONE]") break;
    const chunk = JSON.parse(text);
    if (chunk.error) throw new Error(chunk.error.message);
    usage = chunk.usage ?? usage;
    for (const choice of chunk.choices) {
      finish = choice.finish_reason ?? finish;
      yield { reasoning: choice.delta.reasoning_content ?? "", content: choice.delta.content ?? "" };
    }
  }
  yield { reasoning: "", content: "", usage, finish };
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

async function reason(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answered ${response.status}`;
  }
}
