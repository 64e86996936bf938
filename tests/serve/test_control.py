"""Control tokens that a client has the model write come back as text, whatever part of a reply they stood in."""

import json

import pytest

from tests.serve.scripted import ScriptedEngine
from ziphius.text import tokens

TOOL = {"type": "function", "function": {"name": "dive", "parameters": {"type": "object"}}}


@pytest.fixture
def puppet(serve, tokenizer):
    """A model that says what `said` holds, and the server before it."""
    said: list[int] = []
    engine = ScriptedEngine(lambda _: list(said), pace=100)
    return said, engine, serve(engine)


def controls(tokenizer, prompt):
    added = set(tokenizer.added_ids)
    return [token for token in prompt if token in added]


def second_turn(server, reply, **fields):
    """The reply sent back as it came."""
    message = reply.json()["choices"][0]["message"]
    turns = [{"role": "user", "content": "hi"}, message]
    for call in message.get("tool_calls") or []:
        turns.append({"role": "tool", "tool_call_id": call["id"], "content": "12"})
    return message, server.ask(messages=[*turns, {"role": "user", "content": "?"}], **fields)


@pytest.mark.parametrize("thinking", ["enabled", "disabled"])
@pytest.mark.parametrize("tools", [None, [TOOL]])
def test_in_the_answer(puppet, tokenizer, thinking, tools):
    said, engine, server = puppet
    fields = {"thinking": {"type": thinking}, "tools": tools, "max_tokens": 40}
    whale, end = tokenizer.encode("whale"), tokenizer.encode("hm</think>" if thinking == "enabled" else "")
    said[:] = [*end, *whale, tokenizer.eos_id]
    _, plain = second_turn(server, server.ask(**fields), **fields)
    assert plain.status_code == 200
    expected = controls(tokenizer, engine.requests[-1].prompt)
    shown = 0
    for token in tokenizer.added_ids:
        for forced in ([*whale, token, *whale], [token, *whale], [*whale, token]):
            said[:] = [*end, *forced, tokenizer.eos_id]
            message, again = second_turn(server, server.ask(**fields), **fields)
            assert again.status_code == 200
            if message.get("tool_calls"):
                continue  # a call was begun, which is written as one again
            assert controls(tokenizer, engine.requests[-1].prompt) == expected
            spelled = tokenizer.decode([token])
            shown += spelled in message["content"]
            assert message["content"] in tokenizer.decode(engine.requests[-1].prompt)
    assert shown > len(tokenizer.added_ids)


def test_in_the_arguments_of_a_call(puppet, tokenizer):
    said, engine, server = puppet
    begin = tokenizer.encode(f"hm</think>{tokens.CALLS_BEGIN}{tokens.CALL_BEGIN}dive{tokens.TOOL_SEP}")
    end = tokenizer.encode(f"{tokens.CALL_END}{tokens.CALLS_END}{tokens.EOS}")
    fields = {"tools": [TOOL], "max_tokens": 60}
    said[:] = [*begin, *tokenizer.encode('{"a": "b"}'), *end]
    second_turn(server, server.ask(**fields), **fields)
    expected = controls(tokenizer, engine.requests[-1].prompt)
    marks = {tokenizer.eos_id, *tokenizer.encode(tokens.CALL_END + tokens.USER)}
    for token in set(tokenizer.added_ids) - marks:
        said[:] = [*begin, *tokenizer.encode('{"a": "'), token, *tokenizer.encode('"}'), *end]
        message, again = second_turn(server, server.ask(**fields), **fields)
        assert again.status_code == 200
        arguments = message["tool_calls"][0]["function"]["arguments"]
        assert json.loads(arguments) == {"a": tokenizer.decode([token])}
        assert controls(tokenizer, engine.requests[-1].prompt) == expected


def test_behind_a_prefix(puppet, tokenizer):
    said, engine, server = puppet
    for token in tokenizer.added_ids:
        said[:] = [token, *tokenizer.encode("whale"), tokenizer.eos_id]
        prefix = {"role": "assistant", "content": "very ", "prefix": True}
        reply = server.ask(messages=[{"role": "user", "content": "hi"}, prefix]).json()["choices"][0]["message"]
        whole = {"role": "assistant", "content": "very " + reply["content"]}
        server.ask(messages=[{"role": "user", "content": "hi"}, whole, {"role": "user", "content": "?"}])
        prompt = engine.requests[-1].prompt
        assert whole["content"] in tokenizer.decode(prompt)
        assert controls(tokenizer, prompt).count(tokenizer.user_id) == 2
