"""Anthropic's Messages API, seen with the official client over turns that send back what came."""

import json

import anthropic
import pytest
from anthropic.types import Message, RawMessageStreamEvent
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from tests.serve.scripted import ScriptedEngine
from ziphius.serve.wire.keys import Keys, _hash
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


class Stops(ScriptedEngine):
    """Ends an answer at a stop string, as the engine does."""

    tokenizer = None

    def step(self):
        said = {key: list(value[2]) for key, value in self._running.items()}
        stops = {key: value[0].settings.stop for key, value in self._running.items()}
        updates = super().step()
        for update in updates:
            key = update.id, update.sample
            for end in range(len(update.token_ids)):
                text = self.tokenizer.decode(said[key] + update.token_ids[: end + 1])
                found = next((stop for stop in stops[key] if stop in text), None)
                if found is not None:
                    update.token_ids, update.logprobs = update.token_ids[: end + 1], update.logprobs[: end + 1]
                    update.finish_reason, update.stop_string = "stop", found
                    self._running.pop(key, None)
                    break
        return updates


@pytest.fixture
def scripted(serve, tokenizer):
    """`scripted(*texts)` -> a server whose model says the texts one request after the other, its engine, a client."""

    def start(*texts, pace=1, **options):
        engine = Stops(lambda _: tokenizer.encode(texts[(len(engine.requests) - 1) % len(texts)] + tokens.EOS), pace)
        engine.tokenizer = tokenizer
        server = serve(engine, **{"context": 2048} | options)
        return server, engine, anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)

    return start


def dumped(message):
    """A message without what differs from one request to the next."""
    found = message.model_dump(exclude={"id", "usage"}, exclude_none=True)
    found.get("content") and [block.pop("id", None) for block in found["content"]]
    return found


def streamed(client, **fields):
    with client.messages.stream(**fields) as stream:
        return stream.get_final_message()


def read(server, engine, which=-1):
    return server.service.tokenizer.decode(engine.requests[which].prompt)


def test_a_message_is_text_and_says_what_it_used(scripted):
    _, engine, client = scripted("hm</think>four")
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
def test_turns_that_send_back_what_came(scripted, stream):
    server, engine, client = scripted("I add.\n</think>\n\nfour", "Once more.</think>five")
    ask = (lambda **fields: streamed(client, **fields)) if stream else client.messages.create
    first = ask(**ASK, **THINK)
    thinking, text = first.content
    assert (thinking.thinking, text.text) == ("I add.", "four")
    assert server.service.seal.knows("I add.", thinking.signature)
    turns = [*ASK["messages"], first.to_param(), {"role": "user", "content": "and now?"}]
    second = ask(**ASK | {"messages": turns}, **THINK)
    assert second.content[-1].text == "five"
    prompt = read(server, engine)
    assert "four" in prompt
    assert "I add." not in prompt
    turns[1]["content"][0].signature = "another service's"
    assert ask(**ASK | {"messages": turns}, **THINK).content[-1].text == "four"
    assert read(server, engine) == prompt


@settings(max_examples=25, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_stream_adds_up_to_the_whole_however_it_is_cut(scripted_once, data):
    _server, engine, client = scripted_once
    thinking = data.draw(st.sampled_from(["", "I add.\n</think>\n\n", "\n</think>", "hm 鲸鱼</think>"]))
    said = data.draw(st.sampled_from(["", "four 鲸鱼 whales", " \n", "a<think>b</think>"]))
    written = data.draw(
        st.lists(st.sampled_from(['{"of": "cuvier"}', "", "{broken", '{"a":[1.0,{}]} ', "[1]"]), max_size=3)
    )
    late = data.draw(st.sampled_from(["", "late words"])) if written else ""
    engine.said = thinking + said + (calls(*written) if written else "") + late
    fields = ASK | {"tools": [DEPTH], "max_tokens": data.draw(st.sampled_from([5, 20, 60, 300]))}
    kind = data.draw(st.sampled_from(["enabled", "omitted", "absent", "disabled"]))
    if kind != "absent":
        fields["thinking"] = (
            {"type": kind}
            if kind == "disabled"
            else {"type": "adaptive", "display": {"enabled": "summarized"}.get(kind, kind)}
        )
    fields["stop_sequences"] = data.draw(st.sampled_from([[], ["whales"], ["our", "e"]]))
    engine.pace = 1000
    whole = client.messages.create(**fields)
    engine.pace = data.draw(st.integers(1, 12))
    events = list(client.messages.create(**fields, stream=True))
    for event in events:
        TypeAdapter(RawMessageStreamEvent).validate_python(event.to_dict(), strict=True)
    final = streamed(client, **fields)
    assert dumped(final) == dumped(whole)
    usage = {"output_tokens", "input_tokens", "cache_read_input_tokens", "output_tokens_details"}
    assert final.usage.model_dump(include=usage) == whole.usage.model_dump(include=usage)
    assert_well_formed([event.to_dict() for event in events], len(whole.content))


def assert_well_formed(events, count):
    kinds = [event["type"] for event in events]
    assert (kinds[0], kinds[-2:]) == ("message_start", ["message_delta", "message_stop"])
    assert [e["index"] for e in events if e["type"] == "content_block_start"] == list(range(count))
    open_block = None
    for event in events[1:-2]:
        if event["type"] == "content_block_start":
            assert open_block is None
            open_block = event["index"]
        assert event["index"] == open_block
        if event["type"] == "content_block_stop":
            open_block = None
    assert open_block is None


@pytest.fixture(scope="module")
def scripted_once(tokenizer):
    """One server for many examples; its engine says `engine.said`."""
    from tests.serve.conftest import running

    engine = Stops(lambda _: tokenizer.encode(engine.said + tokens.EOS))
    engine.tokenizer = tokenizer
    with running(tokenizer, engine, context=2048) as server:
        yield server, engine, anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)


def test_the_thinking_can_be_asked_for_in_every_way(scripted):
    _, engine, client = scripted("hm</think>four")
    for fields, thinks, budget in (
        ({"thinking": {"type": "adaptive"}}, True, 225),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}, True, 75),
        ({"thinking": {"type": "enabled", "budget_tokens": 40}}, True, 40),
        ({"thinking": {"type": "enabled", "budget_tokens": 299}}, True, 225),  # leaves no room for an answer
        ({"thinking": {"type": "disabled"}}, False, None),
    ):
        client.messages.create(**ASK, **fields)
        assert (engine.requests[-1].thinking, engine.requests[-1].settings.thinking_budget) == (thinks, budget)
    omitted = client.messages.create(**ASK, thinking={"type": "adaptive", "display": "omitted"}).content[0]
    assert omitted.thinking == ""
    assert omitted.signature


@pytest.mark.parametrize("stream", [False, True])
def test_tools_over_several_turns(scripted, stream):
    odd = '{"of":"cuvier",  "m": 1.0}'  # not how json.dumps spells it
    server, engine, client = scripted(f"hm</think>I look.{calls(odd, '{broken')}", "deep</think>2992 m")
    ask = (lambda **fields: streamed(client, **fields)) if stream else client.messages.create
    first = ask(**ASK, **THINK, tools=[DEPTH])
    assert [block.type for block in first.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert (first.stop_reason, first.content[2].name) == ("tool_use", "depth")
    assert [block.input for block in first.content[2:]] == [{"of": "cuvier", "m": 1.0}, {"INVALID_JSON": "{broken"}]
    assert all(block.id.startswith("toolu_") for block in first.content[2:])
    results = [
        {"type": "tool_result", "tool_use_id": first.content[2].id, "content": [{"type": "text", "text": "2992"}]},
        {"type": "tool_result", "tool_use_id": first.content[3].id, "content": "no JSON", "is_error": True},
        {"type": "text", "text": "go on"},
    ]
    turns = [*ASK["messages"], {"role": "assistant", "content": first.content}, {"role": "user", "content": results}]
    second = ask(**ASK | {"messages": turns}, tools=[DEPTH])
    assert second.content[-1].text == "2992 m"
    prompt = read(server, engine)
    assert odd in prompt
    assert "{broken" in prompt
    assert "INVALID_JSON" not in prompt
    order = ["I look.", odd, "2992", "Error: no JSON", "go on"]
    assert [prompt.index(part) for part in order] == sorted(prompt.index(part) for part in order)


def test_the_clients_own_loop_of_tools(scripted):
    _, engine, client = scripted(f"hm</think>{calls(OF)}", "</think>2992 m")

    @anthropic.beta_tool
    def depth(of: str) -> str:
        """How deep a whale dives."""
        return f"{of}: 2992"

    runner = client.beta.messages.tool_runner(**ASK, tools=[depth])  # tries first to have the service keep the turns
    assert runner.until_done().content[0].text == "2992 m"
    assert "cuvier: 2992" in engine.tokenizer.decode(engine.requests[-1].prompt)


def test_the_choice_of_tools(scripted, tokenizer):
    _, engine, client = scripted("</think>x")
    grammar = lambda: engine.requests[-1].settings.constraint
    client.messages.create(**ASK, tools=[DEPTH], tool_choice={"type": "any"})
    assert grammar().text.startswith("start: calls\n")
    client.messages.create(**ASK, tools=[DEPTH], tool_choice={"type": "tool", "name": "depth"})
    assert '"depth"' in grammar().text
    client.messages.create(**ASK, tools=[DEPTH], tool_choice={"type": "none"})
    assert engine.requests[-1].settings.logit_bias
    call_end = tokenizer.encode(tokens.CALL_END)[0]
    client.messages.create(**ASK, tools=[DEPTH], tool_choice={"type": "auto", "disable_parallel_tool_use": True})
    assert grammar() is None
    assert call_end in engine.requests[-1].settings.stop_token_ids
    client.messages.create(**ASK, tool_choice={"type": "auto"})
    client.messages.create(**ASK, tools=[DEPTH | {"strict": True, "type": "custom", "defer_loading": True}])
    assert grammar().kind == "grammar"


@pytest.mark.parametrize("stream", [False, True])
def test_why_an_answer_ended(scripted, stream):
    _, _engine, client = scripted("</think>one two three four")
    ask = (lambda **fields: streamed(client, **fields)) if stream else client.messages.create
    stopped = ask(**ASK, stop_sequences=["nine", "three"])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "three")
    assert stopped.content[0].text == "one two "
    assert ask(**ASK | {"max_tokens": 4}).stop_reason == "max_tokens"


def test_a_limit_beyond_the_context_is_an_upper_bound(scripted):
    _, engine, client = scripted("</think>" + "deep " * 100, context=64)
    fields = ASK | {"max_tokens": 32000, "thinking": {"type": "enabled", "budget_tokens": 31999}}
    message = streamed(client, **fields)
    assert message.stop_reason == "model_context_window_exceeded"
    request = engine.requests[0]
    assert len(request.prompt) + request.settings.max_new_tokens == 64
    assert request.settings.thinking_budget < request.settings.max_new_tokens - 2
    with pytest.raises(anthropic.BadRequestError, match="prompt is too long: the prompt has"):
        client.messages.create(**ASK | {"messages": [{"role": "user", "content": "deep " * 100}]})


def test_a_beginning_is_gone_on_with(scripted):
    server, engine, client = scripted(" deep")
    turns = [*ASK["messages"], {"role": "assistant", "content": "very"}]
    assert client.messages.create(**ASK | {"messages": turns}).content[0].text == " deep"
    assert read(server, engine).endswith(f"{tokens.ASSISTANT}</think>very")
    seal = server.service.seal
    own = {"type": "thinking", "thinking": "I know", "signature": seal.sign("I know")}
    foreign = own | {"signature": "c2lnbmVk"}
    cut = client.messages.create(**ASK | {"messages": [turns[0], {"role": "assistant", "content": [own]}]}, **THINK)
    assert read(server, engine).endswith("<think>\nI know")
    assert cut.content[0].thinking == "deep"
    for content, end in (
        ([own, {"type": "text", "text": "very"}], "<think>\nI know\n</think>\n\nvery"),
        ([foreign, {"type": "text", "text": "very"}], f"{tokens.ASSISTANT}</think>very"),
        ([foreign], f"{tokens.ASSISTANT}<think>\n"),
        ([{"type": "redacted_thinking", "data": "x"}], f"{tokens.ASSISTANT}<think>\n"),
    ):
        client.messages.create(**ASK | {"messages": [turns[0], {"role": "assistant", "content": content}]}, **THINK)
        assert read(server, engine).endswith(end)


def test_what_the_prompt_is_made_of(scripted, tokenizer):
    server, engine, client = scripted("x")
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
    assert read(server, engine) == rendered


def test_tokens_are_counted_as_a_message_counts_them(scripted):
    _server, engine, client = scripted(f"hm</think>{calls(OF)}")
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


def test_an_answer_can_have_a_form(scripted):
    from pydantic import BaseModel

    class Depth(BaseModel):
        metres: int

    _, engine, client = scripted('</think>{"metres": 2992}')
    parsed = client.messages.parse(**ASK, output_format=Depth)
    assert parsed.parsed_output == Depth(metres=2992)
    assert engine.requests[0].settings.constraint.kind == "json_schema"


REFUSED = [
    ({"model": "claude"}, anthropic.NotFoundError, "not_found_error", "there is no model 'claude'"),
    ({"max_tokens": 0}, anthropic.BadRequestError, "invalid_request_error", "max_tokens"),
    ({"extra_body": {"temperature": 3}}, anthropic.BadRequestError, "invalid_request_error", "temperature"),
    ({"extra_body": {"top_k": 2**63}}, anthropic.BadRequestError, "invalid_request_error", "top_k"),
    ({"messages": []}, anthropic.BadRequestError, "invalid_request_error", "messages"),
    ({"thinking": {"type": "enabled", "budget_tokens": 300}}, anthropic.BadRequestError, "invalid_request_error",
     "max_tokens must be greater"),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, anthropic.BadRequestError,
     "invalid_request_error", "tools.0: 'web_search_20250305'"),
    ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, anthropic.BadRequestError,
     "invalid_request_error", "messages.0.content.0: 'image'"),
    ({"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": [
        {"type": "document"}]}]}]}, anthropic.BadRequestError, "invalid_request_error",
     "messages.0.content.0.content.0: 'document'"),
    ({"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "depth", "input": {}}]}]},
     anthropic.BadRequestError, "invalid_request_error", "the last message calls tools"),
    ({"tools": [DEPTH, DEPTH]}, anthropic.BadRequestError, "invalid_request_error", "two tools have the same name"),
    ({"extra_body": {"mcp_servers": [{"url": "x"}]}}, anthropic.BadRequestError, "invalid_request_error",
     "mcp_servers"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "kind", "type", "says"), REFUSED)
def test_what_is_refused(scripted_once, fields, kind, type, says):
    _, _, client = scripted_once
    with pytest.raises(kind) as caught:
        client.messages.create(**ASK | fields)
    body = caught.value.body
    assert (body["type"], body["error"]["type"]) == ("error", type)
    assert says in body["error"]["message"]
    assert caught.value.request_id == body["request_id"]


def test_refusals_before_anything_is_read(scripted):
    server, _, _ = scripted("x", keys=Keys((("ada", _hash("zk-1")),)), max_body_bytes=4000, max_requests=1)
    client = lambda **key: anthropic.Anthropic(base_url=server.url, max_retries=0, **key)
    for wrong in ({"api_key": "zk-2"}, {"auth_token": "zk-2"}):
        with pytest.raises(anthropic.AuthenticationError) as caught:
            client(**wrong).messages.create(**ASK)
        assert caught.value.type == "authentication_error"
    for right in ({"api_key": "zk-1"}, {"auth_token": "zk-1"}):
        assert client(**right).messages.create(**ASK).role == "assistant"
    with pytest.raises(anthropic.ContentTooLargeError):
        client(api_key="zk-1").messages.create(**ASK | {"system": "x" * 5000})
    server.service.enter()
    with pytest.raises(anthropic.RateLimitError) as caught:
        client(api_key="zk-1").messages.create(**ASK)
    assert caught.value.type == "rate_limit_error"
    assert int(caught.value.response.headers["retry-after"]) >= 1
    server.service.draining = True
    with pytest.raises(anthropic.InternalServerError) as caught:
        client(api_key="zk-1").messages.create(**ASK)
    assert (caught.value.status_code, caught.value.type) == (503, "overloaded_error")


def test_a_failure_under_way_is_an_event(scripted):
    _server, engine, client = scripted("four", pace=1)
    engine.failing = RuntimeError("a step broke")
    events = client.messages.create(**ASK, stream=True)
    with pytest.raises(anthropic.APIStatusError) as caught:
        list(events)
    assert caught.value.body["error"]["type"] == "api_error"
    assert caught.value.body["request_id"].startswith("req_")


def test_a_stream_that_says_nothing_pings(scripted):
    server, engine, _ = scripted("hm hm hm hm</think>four", keep_alive_seconds=0.05)
    engine.delay = 0.03
    with server.http.stream("POST", "/v1/messages", json=ASK | {"stream": True}) as response:
        lines = [line for line in response.iter_lines() if line.startswith("event: ")]
    before = lines[: lines.index("event: content_block_start")]
    assert before.count("event: ping") > 2  # the thinking is not shown, and goes on
    assert lines[-1] == "event: message_stop"


def test_traffic_of_a_coding_agent(scripted):
    """The shape of what Claude Code sends: betas, blocks with cache marks, large schemas, a large max_tokens."""
    server, _engine, _client = scripted(f"hm</think>{calls(OF)}", "</think>done")
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
