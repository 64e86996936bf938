"""The Responses API, seen with the official client over several turns that send back what they got."""

import json

import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from tests.serve.conftest import running
from tests.serve.scripted import ScriptedEngine
from ziphius.text import tokens

JSON = {"content-type": "application/json"}
EVENT = TypeAdapter(ResponseStreamEvent)
ASK = {"model": "tiny", "input": "how deep?"}
TOOLS = [
    {"type": "function", "name": name, "strict": False, "description": None, "parameters": {"type": "object"}}
    for name in ("depth", "rise")
]
CALLS = tokens.CALLS_BEGIN + "".join(
    f'{tokens.CALL_BEGIN}depth{tokens.TOOL_SEP}{{"of": "{who}"}}{tokens.CALL_END}' for who in ("cuvier", "sperm")
) + tokens.CALLS_END  # fmt: skip


class Script:
    """A server whose model says `text`, or the next of `turns`, and an openai client."""

    def __init__(self, serve, tokenizer, *turns, pace=1, **options):
        self.turns = list(turns)
        self.engine = ScriptedEngine(self._say, pace)
        self.tokenizer, self.server = tokenizer, serve(self.engine, **options)
        self.client = openai.OpenAI(base_url=f"{self.server.url}/v1", api_key="none", max_retries=0)
        self.create = self.client.responses.create

    def _say(self, _):
        return self.tokenizer.encode((self.turns.pop(0) if len(self.turns) > 1 else self.turns[0]) + tokens.EOS)

    def prompt(self, place=-1):
        return self.tokenizer.decode(self.engine.requests[place].prompt)


@pytest.fixture
def script(serve, tokenizer):
    return lambda *turns, **options: Script(serve, tokenizer, *turns, **options)


def read_events(text):
    """Events off the wire, each checked: its name is its type, its number is its place, its form is the SDK's."""
    found = []
    for block in text.split("\n\n"):
        if block and not block.startswith(":"):
            name, data = block.split("\n")
            body = json.loads(data.removeprefix("data: "))
            assert name == f"event: {body['type']}"
            assert body["sequence_number"] == len(found)
            EVENT.validate_python(body)
            found.append(body)
    return found


def streamed(server, **fields):
    reply = server.http.post("/v1/responses", json=ASK | fields | {"stream": True})
    assert reply.headers["content-type"].startswith("text/event-stream")
    return read_events(reply.text)


def same(response):
    """What two responses to the same request have in common: all but ids and what was measured."""
    plain = dict(response, created_at=0, completed_at=bool(response["completed_at"]), id="")
    plain["usage"] = {k: v for k, v in plain["usage"].items() if k not in ("ziphius", "input_tokens_details")}
    plain["output"] = [{k: v for k, v in item.items() if k not in ("id", "call_id")} for item in plain["output"]]
    return plain


def test_a_conversation_whose_items_are_sent_back(script):
    said = script("I add.\n</think>\n\nfour", "</think>deep", "</think>yes")
    first = said.create(**ASK, instructions="be brief")
    Response.model_validate(first.model_dump(), strict=True)
    thought, message = first.output
    assert (thought.type, thought.content[0].text, thought.summary) == ("reasoning", "I add.", [])
    assert (message.type, message.role, first.output_text) == ("message", "assistant", "four")
    assert (first.status, first.store, first.previous_response_id) == ("completed", False, None)
    assert (first.id[:5], thought.id[:3], message.id[:4]) == ("resp_", "rs_", "msg_")
    usage = first.usage
    assert usage.input_tokens == len(said.engine.requests[0].prompt)
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert (usage.input_tokens_details.cached_tokens, usage.output_tokens_details.reasoning_tokens > 0) == (2, True)
    assert usage.ziphius["dollars_per_hour"] == 0
    asked = [{"role": "user", "content": "how deep?"}, *first.output, {"role": "user", "content": "so?"}]
    said.create(model="tiny", input=asked)
    dumped = [item.model_dump() if isinstance(item, BaseModel) else item for item in asked]  # with null everywhere
    said.create(model="tiny", input=dumped)
    assert said.prompt(1) == said.prompt(2)
    assert "four" in said.prompt(1)
    assert "I add" not in said.prompt(1)  # as DeepSeek has it


def test_instructions_roles_and_parts(script):
    said = script("</think>yes")
    parts = [{"type": "input_text", "text": "how "}, {"type": "input_text", "text": "deep?"}]
    said.create(
        model="tiny",
        instructions="A",
        input=[
            {"role": "developer", "content": "B"},
            {"type": "message", "role": "user", "content": parts, "status": "completed"},
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
            {"role": "assistant", "content": [{"type": "output_text", "text": "ha", "annotations": []}], "phase": None},
            {"role": "user", "content": "?"},
        ],
    )
    roles = (("system", "A"), ("system", "B"), ("user", "how deep?"), ("assistant", "no"), ("assistant", "ha"))
    chat = [{"role": role, "content": content} for role, content in (*roles, ("user", "?"))]
    assert said.prompt() == said.tokenizer.render(chat)


@pytest.mark.parametrize("pace", [1, 3, 100])
def test_a_loop_of_tools(script, pace):
    said = script(f"hm</think>I look.{CALLS}", "</think>deep", pace=pace)
    first = said.create(**ASK, tools=TOOLS)
    _, message, *calls = first.output
    assert (message.content[0].text, [call.type for call in calls]) == ("I look.", ["function_call"] * 2)
    assert [json.loads(call.arguments)["of"] for call in calls] == ["cuvier", "sperm"]
    assert len({call.id for call in calls} | {call.call_id for call in calls}) == 4
    results = ["2992", [{"type": "input_text", "text": "2035"}]]
    outputs = [
        {"type": "function_call_output", "call_id": call.call_id, "output": result}
        for call, result in zip(calls, results, strict=True)
    ]
    second = said.create(
        model="tiny", input=[{"role": "user", "content": "how deep?"}, *first.output, *outputs], tools=TOOLS
    )
    assert second.output_text == "deep"
    chat = said.server.ask(
        messages=[
            {"role": "user", "content": "how deep?"},
            {"role": "assistant", "content": "I look.", "tool_calls": [
                {"id": call.call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in calls
            ]},
            {"role": "tool", "tool_call_id": calls[0].call_id, "content": "2992"},
            {"role": "tool", "tool_call_id": calls[1].call_id, "content": "2035"},
        ],
        tools=[{"type": "function", "function": {"name": t["name"], "strict": False, "parameters": t["parameters"]}}
               for t in TOOLS],
    )  # fmt: skip
    assert chat.status_code == 200
    assert said.prompt(-2) == said.prompt(-1)


def test_the_clients_own_stream(script):
    said = script(f"hm</think>I look.{CALLS}", pace=2)
    with said.client.responses.stream(**ASK, tools=TOOLS) as stream:
        seen = list(stream)
        final = stream.get_final_response()
    assert final.output_text == "I look."
    assert [json.loads(item.arguments)["of"] for item in final.output[2:]] == ["cuvier", "sperm"]
    assert seen[0].type == "response.created"
    assert [event.sequence_number for event in seen] == list(range(len(seen)))
    done = [event.item for event in seen if event.type == "response.output_item.done"]
    assert [(item.id, item.status) for item in done] == [(item.id, item.status) for item in final.output]
    outputs = [{"type": "function_call_output", "call_id": item.call_id, "output": "1"} for item in final.output[2:]]
    said.create(model="tiny", input=[*final.output, *outputs], tools=TOOLS)  # `parsed` and `parsed_arguments` come back
    assert "I look." in said.prompt()


def test_a_form_that_is_parsed(script):
    class Depth(BaseModel):
        metres: int

    said = script('hm</think>{"metres": 2992}')
    parsed = said.client.responses.parse(**ASK, text_format=Depth)
    assert parsed.output_parsed == Depth(metres=2992)
    constraint = said.engine.requests[-1].settings.constraint
    assert (constraint.kind, json.loads(constraint.text)["required"]) == ("json_schema", ["metres"])
    assert (parsed.text.format.type, parsed.text.format.name) == ("json_schema", "Depth")
    with said.client.responses.stream(**ASK, text_format=Depth) as stream:
        assert stream.get_final_response().output_parsed == Depth(metres=2992)
    for form, kind in (({"type": "json_object"}, "json"), ({"type": "regex", "pattern": "a"}, "regex")):
        said.create(**ASK, text={"format": form, "verbosity": "low"})
        assert said.engine.requests[-1].settings.constraint.kind == kind


def test_a_response_that_is_cut_off(script):
    said = script("</think>many whales dive deep")
    cut = said.create(**ASK, max_output_tokens=4, reasoning={"effort": "minimal"})
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert (cut.output[-1].status, cut.completed_at) == ("incomplete", None)
    last = streamed(said.server, max_output_tokens=4)[-1]
    assert (last["type"], last["response"]["output"][-1]["status"]) == ("response.incomplete", "incomplete")
    only_thought = script("so many whales dive deep").create(**ASK, max_output_tokens=3)
    assert [(item.type, item.status) for item in only_thought.output] == [("reasoning", "incomplete")]


def test_an_answer_of_nothing_is_an_empty_message(script):
    said = script("hm</think>")
    assert said.create(**ASK).output[-1].content[0].text == ""
    ended = streamed(said.server)[-1]["response"]
    assert [item["type"] for item in ended["output"]] == ["reasoning", "message"]


def test_settings_reach_the_engine_and_stand_in_the_reply(script):
    said = script("hm</think>a whale")
    reply = said.create(
        **ASK, temperature=0.5, max_output_tokens=100, top_logprobs=2, include=["message.output_text.logprobs"],
        reasoning={"effort": "low", "summary": "auto"}, metadata={"a": "b"}, user="ada", store=True,
        service_tier="auto", truncation="auto", prompt_cache_key="k", safety_identifier="s", parallel_tool_calls=True,
        extra_body={"top_k": 4, "seed": 7, "stop": ["!"], "logit_bias": {"5": -3}},
    )  # fmt: skip
    held = said.engine.requests[0].settings
    assert (held.temperature, held.top_p, held.top_k, held.seed, held.logprobs) == (0.5, 0.95, 4, 7, 2)
    assert (held.thinking_budget, held.max_new_tokens, held.stop, held.logit_bias) == (25, 100, ("!",), {5: -3.0})
    assert (reply.temperature, reply.top_p, reply.max_output_tokens, reply.top_logprobs) == (0.5, 0.95, 100, 2)
    assert (reply.metadata, reply.user, reply.store, reply.truncation) == ({"a": "b"}, "ada", False, "disabled")
    assert (reply.reasoning.effort, reply.service_tier, reply.prompt_cache_key) == ("low", "default", "k")
    thought, message = reply.output
    assert [summary.text for summary in thought.summary] == ["hm"]
    assert "".join(log.token for log in message.content[0].logprobs) == "a whale"
    assert all(len(log.top_logprobs) == 2 for log in message.content[0].logprobs)
    said.create(**ASK, reasoning={"effort": "none"})
    assert not said.engine.requests[-1].thinking
    nulls = dict.fromkeys(
        ("previous_response_id", "conversation", "prompt", "tools", "tool_choice", "text", "include", "metadata",
         "reasoning", "background", "truncation", "stream_options", "instructions", "temperature", "moderation")
    )  # fmt: skip
    said.create(**ASK, background=False, tools=[], tool_choice="auto")
    said.create(**ASK, extra_body=nulls | {"something_new": 1})


def test_the_choice_of_tools(script, tokenizer):
    said = script("</think>no")
    said.create(**ASK, tools=TOOLS, tool_choice="none", parallel_tool_calls=False)
    banned = dict.fromkeys(tokenizer.encode(tokens.CALLS_BEGIN + tokens.CALL_BEGIN), -100.0)
    assert said.engine.requests[-1].settings.logit_bias == banned
    for choice in ("required", {"type": "function", "name": "rise"}):
        reply = said.create(**ASK, tools=TOOLS, tool_choice=choice)
        constraint = said.engine.requests[-1].settings.constraint
        assert ('"rise"' in constraint.text, '"depth"' in constraint.text) == (True, choice == "required")
        assert reply.tool_choice == choice or reply.tool_choice.to_dict() == choice
    allowed = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "rise"}]}
    said.create(**ASK, tools=TOOLS, tool_choice=allowed)
    assert "rise" in said.prompt()
    assert "depth" not in said.prompt()


REFUSED = [
    ({"previous_response_id": "resp_1"}, "previous_response_id", "send the whole conversation"),
    ({"conversation": "conv_1"}, "conversation", "send the whole conversation"),
    ({"background": True}, "background", "stream"),
    ({"prompt": {"id": "pmpt_1"}}, "prompt", "no prompts are stored"),
    ({"messages": []}, "messages", "called input"),
    ({"input": []}, "input", "at least 1"),
    ({"input": 3}, "input", "list"),
    ({"input": [3]}, "input.0", "must be an object"),
    ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input.0", "nothing is stored here"),
    ({"input": [{"type": "web_search_call", "id": "ws_1"}]}, "input.0", "'web_search_call'"),
    ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0.content", "'input_image'"),
    ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input.0.call_id", "required"),
    ({"input": [{"type": "reasoning", "id": "rs_1", "summary": []}]}, None, "thinking alone"),
    ({"tools": [{"type": "web_search"}]}, "tools.0", "'web_search'"),
    ({"tools": [{"type": "function", "name": "a b"}]}, "tools.0.name", "pattern"),
    ({"tools": TOOLS[:1] * 2}, None, "same name"),
    ({"tool_choice": "required"}, None, "needs tools"),
    ({"tools": TOOLS, "tool_choice": {"type": "function", "name": "fly"}}, None, "'fly'"),
    ({"tools": TOOLS, "tool_choice": {"type": "mcp"}}, "tool_choice", "'mcp'"),
    ({"text": {"format": {"type": "xml"}}}, "text.format", "'xml'"),
    ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema", "required"),
    ({"max_tokens": 5}, None, "called max_output_tokens"),
    ({"n": 2}, None, "one answer"),
    ({"metadata": {"a": "\ud800"}}, None, "surrogate"),
    ({"model": "other"}, "model", "no model 'other'"),
]  # fmt: skip


def test_what_cannot_be_done_is_refused_by_name(script):
    server = script("</think>no").server
    for fields, param, why in REFUSED:
        reply = server.http.post("/v1/responses", content=json.dumps(ASK | fields), headers=JSON)
        error = reply.json()["error"]
        assert reply.status_code == (404 if param == "model" else 422), (fields, error)
        assert (error["param"], why in error["message"]) == (param, True), (fields, error)


def test_too_long_an_input_is_told_in_this_apis_words(script):
    said = script("</think>no", context=40)
    with pytest.raises(openai.BadRequestError, match="shorten input") as told:
        said.create(**ASK | {"input": "a whale " * 50}, truncation="auto")
    assert (told.value.param, told.value.code) == ("input", "context_length_exceeded")


def test_nothing_is_stored(script):
    said = script("</think>no")
    responses = said.client.responses
    name = said.create(**ASK).id
    for ask in (responses.retrieve, responses.delete, responses.cancel, responses.input_items.list):
        with pytest.raises(openai.NotFoundError, match="not stored here"):
            ask(name)
    with pytest.raises(openai.NotFoundError, match="compact is not offered here"):
        responses.compact(**ASK)


def test_a_failure_under_way_ends_the_stream(script):
    said = script("a whale dives deep " * 20)
    events = []
    for event in said.create(**ASK, stream=True):
        events.append(event)
        if len(events) == 6:
            said.engine.ending = "boom"
    assert [event.type for event in events[-2:]] == ["error", "response.failed"]
    assert "boom" in events[-2].message
    failed = events[-1].response
    assert (failed.status, failed.error.code, failed.output[0].status) == ("failed", "server_error", "incomplete")


def test_a_stream_that_waits_is_kept_open(serve, tokenizer):
    engine = ScriptedEngine(lambda _: tokenizer.encode(f"</think>no{tokens.EOS}"), delay=0.1)
    server = serve(engine, keep_alive_seconds=0.03)
    text = server.http.post("/v1/responses", json=ASK | {"stream": True}).text
    assert ": keep-alive\n\n" in text
    assert read_events(text)[-1]["type"] == "response.completed"


@pytest.fixture(scope="module")
def told(tokenizer):
    """A server that says what the test puts into `engine.said`, at `engine.pace`."""
    engine = ScriptedEngine(lambda _: [*engine.said, tokenizer.eos_id])
    with running(tokenizer, engine, context=4096) as server:
        yield engine, server


WORDS = [
    *" \nab", "a whale", "{}", "鲸", "function", "```", tokens.THINK, tokens.END_THINK, tokens.CALLS_BEGIN,
    tokens.CALLS_END, tokens.CALL_BEGIN, tokens.CALL_END, tokens.TOOL_SEP, f"{tokens.CALL_BEGIN}f{tokens.TOOL_SEP}",
]  # fmt: skip


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    words=st.lists(st.sampled_from(WORDS), max_size=14),
    pace=st.integers(1, 40),
    limit=st.sampled_from([None, None, 3, 9]),
    fields=st.sampled_from([{}, {"reasoning": {"summary": "auto"}}, {"top_logprobs": 1}]),
)
def test_whatever_a_model_says_and_at_any_pace(told, tokenizer, words, pace, limit, fields):
    """Deltas add up to what is done, what is done to the response at the end, and that is the one given whole."""
    engine, server = told
    engine.said, engine.pace = tokenizer.encode("".join(words)), pace
    fields = fields | {"tools": TOOLS, "max_output_tokens": limit}
    events = streamed(server, **fields)
    final = events[-1]["response"]
    added, deltas, done = {}, {}, {}
    for event in events[2:-1]:
        kind, place = event["type"].removeprefix("response."), event["output_index"]
        if kind == "output_item.added":
            assert place == len(added) == len(done)  # one after the other
            added[place] = event["item"]["id"]
        elif kind == "output_item.done":
            done[place] = event["item"]
        else:
            assert event["item_id"] == added[place]
            assert place not in done
        if kind.endswith(".delta"):
            key = place, kind.removesuffix(".delta")
            deltas[key] = deltas.get(key, "") + event["delta"]
        elif kind in {f"{name}.done" for name in ("output_text", "reasoning_text", "reasoning_summary_text")}:
            assert event["text"] == deltas.get((place, kind.removesuffix(".done")), "")
        elif kind == "function_call_arguments.done":
            assert event["arguments"] == deltas.get((place, "function_call_arguments"), "")
    assert [done[place] for place in range(len(done))] == final["output"]
    assert len({item["id"] for item in final["output"]}) == len(final["output"])
    engine.pace = 1
    whole = server.http.post("/v1/responses", json=ASK | fields)
    assert same(whole.json()) == same(final)
    turn = [{"role": "user", "content": "?"}, *final["output"], {"role": "user", "content": "?"}]
    assert server.http.post("/v1/responses", json=ASK | {"input": turn} | fields).status_code == 200
