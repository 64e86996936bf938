"""Anthropic's Messages API, seen with the official client over turns that send back what came."""

import json

import anthropic
import pytest
from anthropic.types import Message

from tests.serve.saying import ASK, DEPTH, OF, THINK, calls, streamed, way
from ziphius.serve.contracts.anthropic.request import MessagesRequest
from ziphius.serve.dialogue.blocks import Chats
from ziphius.serve.dialogue.calls import WrittenCalls
from ziphius.serve.dialogue.seal import Seal
from ziphius.text import tokens


def test_a_message_is_text_and_says_what_it_used(talk):
    _, engine, client = talk("hm</think>four")
    message = client.messages.create(**ASK)
    assert message.to_dict()["content"] == [{"type": "text", "text": "four"}]  # nobody asked for the thinking
    assert (message.type, message.role, message.model) == ("message", "assistant", "tiny")
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    assert message.id.startswith("msg_")
    assert message._request_id.startswith("req_")
    assert engine.requests[0].thinking is True  # the template has it think
    usage = message.usage
    assert usage.input_tokens + usage.cache_read_input_tokens == len(engine.requests[0].prompt)
    assert (usage.cache_read_input_tokens, usage.cache_creation_input_tokens) == (2, 0)
    assert 0 < usage.output_tokens_details.thinking_tokens < usage.output_tokens
    assert usage.ziphius["dollars_per_hour"] == 0


@pytest.mark.parametrize("stream", [False, True])
def test_turns_that_send_back_what_came(talk, stream):
    server, engine, client = talk("I add.\n</think>\n\nfour", "Once more.</think>five")
    ask = way(client, stream)
    first = ask(**ASK, **THINK)
    thinking, text = first.content
    assert (thinking.thinking, text.text) == ("I add.", "four")
    assert server.service.seal.knows("I add.", thinking.signature)
    turns = [*ASK["messages"], first.to_param(), {"role": "user", "content": "and now?"}]
    second = ask(**ASK | {"messages": turns}, **THINK)
    assert second.content[-1].text == "five"
    prompt = engine.asked()
    assert "four" in prompt
    assert "I add." not in prompt
    turns[1]["content"][0].signature = "another service's"
    assert ask(**ASK | {"messages": turns}, **THINK).content[-1].text == "four"
    assert engine.asked() == prompt


def test_the_thinking_can_be_asked_for_in_every_way(talk):
    _, engine, client = talk("hm</think>four")
    for fields, thinks, budget in (
        ({"thinking": {"type": "adaptive"}}, True, 225),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}, True, 75),
        ({"thinking": {"type": "enabled", "budget_tokens": 40}}, True, 40),
        ({"thinking": {"type": "enabled", "budget_tokens": 299}}, True, 225),  # leaves no room for an answer
        ({"thinking": {"type": "enabled", "budget_tokens": 4000}}, True, 225),
        ({"thinking": {"type": "disabled"}}, False, None),
    ):
        client.messages.create(**ASK, **fields)
        assert (engine.requests[-1].thinking, engine.requests[-1].settings.thinking_budget) == (thinks, budget)
    omitted = client.messages.create(**ASK, thinking={"type": "adaptive", "display": "omitted"}).content[0]
    assert omitted.thinking == ""
    assert omitted.signature


@pytest.mark.parametrize("kind", ["enabled", "adaptive", "between_tools", "disabled"])
def test_adaptive_thinking_asks_nothing_of_a_model_that_cannot_think(kind):
    asked = MessagesRequest.model_validate(ASK | {"thinking": {"type": kind}, "output_config": {"effort": "low"}})
    chat = Chats(can_think=False, seal=Seal(), calls=WrittenCalls()).of(asked)
    assert chat.thinking is None or chat.thinking.type == "disabled"
    assert (chat.reasoning_effort == "low") == (kind == "enabled")  # which its prompt refuses


@pytest.mark.parametrize("stream", [False, True])
def test_why_an_answer_ended(talk, stream):
    _, _engine, client = talk("</think>one two three four")
    ask = way(client, stream)
    stopped = ask(**ASK, stop_sequences=["nine", "three"])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "three")
    assert stopped.content[0].text == "one two "
    assert ask(**ASK | {"max_tokens": 4}).stop_reason == "max_tokens"


def test_a_limit_beyond_the_context_is_an_upper_bound(talk):
    _, engine, client = talk("</think>" + "deep " * 100, context=64)
    fields = ASK | {"max_tokens": 32000, "thinking": {"type": "enabled", "budget_tokens": 31999}}
    message = streamed(client, **fields)
    assert message.stop_reason == "model_context_window_exceeded"
    request = engine.requests[0]
    assert len(request.prompt) + request.settings.max_new_tokens == 64
    assert request.settings.thinking_budget < request.settings.max_new_tokens - 2
    with pytest.raises(anthropic.BadRequestError, match="prompt is too long: the prompt has"):
        client.messages.create(**ASK | {"messages": [{"role": "user", "content": "deep " * 100}]})


def test_a_beginning_is_gone_on_with(talk):
    server, engine, client = talk(" deep")
    turns = [*ASK["messages"], {"role": "assistant", "content": "very"}]
    assert client.messages.create(**ASK | {"messages": turns}).content[0].text == " deep"
    assert engine.asked().endswith(f"{tokens.ASSISTANT}</think>very")
    seal = server.service.seal
    own = {"type": "thinking", "thinking": "I know", "signature": seal.sign("I know")}
    foreign = own | {"signature": "c2lnbmVk"}
    cut = client.messages.create(**ASK | {"messages": [turns[0], {"role": "assistant", "content": [own]}]}, **THINK)
    assert engine.asked().endswith("<think>\nI know")
    assert cut.content[0].thinking == "deep"
    for content, end in (
        ([own, {"type": "text", "text": "very"}], "<think>\nI know\n</think>\n\nvery"),
        ([foreign, {"type": "text", "text": "very"}], f"{tokens.ASSISTANT}</think>very"),
        ([foreign], f"{tokens.ASSISTANT}<think>\n"),
        ([{"type": "redacted_thinking", "data": "x"}], f"{tokens.ASSISTANT}<think>\n"),
    ):
        client.messages.create(**ASK | {"messages": [turns[0], {"role": "assistant", "content": content}]}, **THINK)
        assert engine.asked().endswith(end)


def test_what_the_prompt_is_made_of(talk, tokenizer):
    _server, engine, client = talk("x")
    cached = {"cache_control": {"type": "ephemeral"}}
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "how "}, {"type": "text", "text": "deep?"} | cached]},
        {"role": "user", "content": "say"},
        {"role": "assistant", "content": "one"},
        {"role": "assistant", "content": [{"type": "text", "text": "two", "citations": None}]},
        {"role": "user", "content": "more"},
    ]
    system = [{"type": "text", "text": "You dive."} | cached, {"type": "text", "text": " Deep."}]
    client.messages.create(**ASK | {"messages": turns}, system=system)
    plain = [("system", "You dive. Deep."), ("user", "how deep?\n\nsay"), ("assistant", "one\n\ntwo"), ("user", "more")]
    rendered = tokenizer.render([{"role": role, "content": content} for role, content in plain])
    assert engine.asked() == rendered


def test_tokens_are_counted_as_a_message_counts_them(talk):
    _server, engine, client = talk(f"hm</think>{calls(OF)}")
    first = client.messages.create(**ASK, tools=[DEPTH])
    result = {"type": "tool_result", "tool_use_id": first.content[0].id, "content": "2992"}
    turns = [*ASK["messages"], first.to_param(), {"role": "user", "content": [result]}]
    for fields in (
        {"messages": ASK["messages"]},
        {"messages": turns, "tools": [DEPTH], "system": "You dive.", "tool_choice": {"type": "any"}},
        {"messages": [*turns, {"role": "assistant", "content": "very"}], "thinking": {"type": "disabled"}},
    ):
        counted = client.messages.count_tokens(model="tiny", **fields).input_tokens
        client.messages.create(model="tiny", max_tokens=5, **fields)
        assert counted == len(engine.requests[-1].prompt)


def test_an_answer_can_have_a_form(talk):
    from pydantic import BaseModel

    class Depth(BaseModel):
        metres: int

    _, engine, client = talk('</think>{"metres": 2992}')
    parsed = client.messages.parse(**ASK, output_format=Depth)
    assert parsed.parsed_output == Depth(metres=2992)
    assert engine.requests[0].settings.constraint.kind == "json_schema"


def test_traffic_of_a_coding_agent(talk):
    """The shape of what Claude Code sends: betas, blocks with cache marks, large schemas, a large max_tokens."""
    server, _engine, _client = talk(f"hm</think>{calls(OF)}", "</think>done")
    cached = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    wide = {f"p{i}": {"type": ["string", "null"], "description": "d" * 40} for i in range(10)}
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object", "properties": wide}
    body = {
        "model": "tiny",
        "max_tokens": 32000,
        "system": [{"type": "text", "text": text} | cached for text in ("You are an agent.", "\nBe brief.")],
        "messages": [
            {"role": "user", "content": [
                {"type": "text", "text": "<system-reminder>\nToday.\n</system-reminder>\n"},
                {"type": "text", "text": "read it"} | cached]},
        ],
        "tools": [DEPTH, {"name": "mcp__" + "x" * 90, "input_schema": schema} | cached],
        "metadata": {"user_id": json.dumps({"device_id": "d" * 64, "account_uuid": "", "session_id": "s" * 36})},
        "thinking": {"type": "adaptive"},
        "output_config": {"effort": "high"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "service_tier": "auto", "container": None, "stream": True, "temperature": 1, "diagnostics": None,
    }  # fmt: skip
    headers = {
        "anthropic-version": "2023-06-01",
        "anthropic-beta": "claude-code-20250219,interleaved-thinking-2025-05-14,context-management-2025-06-27",
        "x-api-key": "none",
        "user-agent": "claude-cli/2.1.0 (external, cli)",
    }
    reply = server.http.post("/v1/messages?beta=true", json=body, headers=headers)
    assert reply.status_code == 200, reply.text
    said = [json.loads(line.removeprefix("data: ")) for line in reply.text.splitlines() if line.startswith("data: ")]
    call = next(event["content_block"] for event in said if event.get("content_block", {}).get("type") == "tool_use")
    body["messages"] += [
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "hm", "signature": "x"},
            call | {"input": {"of": "x"}} | cached]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call["id"], "content": "9"} | cached]},
        {"role": "system", "content": "Today is another day."},
    ]  # fmt: skip
    reply = server.http.post("/v1/messages?beta=true", json=body | {"stream": False}, headers=headers)
    assert Message.model_validate(reply.json()).content[-1].text == "done"


def test_the_model_is_listed(talk):
    _, _, client = talk("x")
    (card,) = client.models.list()
    assert (card.id, card.type, card.display_name, card.max_input_tokens) == ("tiny", "model", "tiny", 2048)
    assert client.models.retrieve("tiny") == card
