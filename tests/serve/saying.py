"""A conversation with the official client of Anthropic's API and a model that says what it is told to."""

import anthropic

from tests.serve.scripted import ScriptedEngine
from ziphius.text import tokens

ASK = {"model": "tiny", "max_tokens": 300, "messages": [{"role": "user", "content": "how deep?"}]}
THINK = {"thinking": {"type": "enabled", "budget_tokens": 100}}
OF = '{"of": "cuvier"}'
DEPTH = {
    "name": "depth",
    "description": "How deep a whale dives",
    "input_schema": {"type": "object", "properties": {"of": {"type": "string"}}, "required": ["of"]},
}


def calls(*written):
    """What a model writes that calls `depth` with each of these arguments."""
    each = "".join(f"{tokens.CALL_BEGIN}depth{tokens.TOOL_SEP}{text}{tokens.CALL_END}" for text in written)
    return f"{tokens.CALLS_BEGIN}{each}{tokens.CALLS_END}"


class SayingEngine(ScriptedEngine):
    """Says `texts`, one a request, over and over, and ends an answer at a stop string, as the engine does."""

    def __init__(self, tokenizer, *texts, pace=1):
        super().__init__(self._text, pace)
        self.tokenizer, self.texts = tokenizer, texts

    def _text(self, _):
        return self.tokenizer.encode(self.texts[(len(self.requests) - 1) % len(self.texts)] + tokens.EOS)

    def step(self):
        before = {key: (request.settings.stop, list(said)) for key, (request, _, said) in self._running.items()}
        updates = super().step()
        for update in updates:
            stops, said = before[update.id, update.sample]
            for end in range(1, len(update.token_ids) + 1):
                text = self.tokenizer.decode(said + update.token_ids[:end])
                found = next((stop for stop in stops if stop in text), None)
                if found is not None:
                    update.token_ids, update.logprobs = update.token_ids[:end], update.logprobs[:end]
                    update.finish_reason, update.stop_string = "stop", found
                    self._running.pop((update.id, update.sample), None)
                    break
        return updates

    def asked(self, which=-1):
        """The prompt of a request."""
        return self.tokenizer.decode(self.requests[which].prompt)


def client_of(server, **key):
    return anthropic.Anthropic(base_url=server.url, max_retries=0, **(key or {"api_key": "none"}))


def streamed(client, **fields):
    """The message that the client puts together from a stream."""
    with client.messages.stream(**fields) as stream:
        return stream.get_final_message()


def way(client, stream):
    """How to ask: for a whole message, or for a stream that becomes one."""
    return (lambda **fields: streamed(client, **fields)) if stream else client.messages.create
