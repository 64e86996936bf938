"""Tools through Anthropic's Messages API."""

import json

import anthropic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.serve.saying import ASK, DEPTH, OF, THINK, calls, way
from ziphius.serve.dialogue.calls import INVALID_JSON, WrittenCalls, as_object
from ziphius.text import tokens


@pytest.mark.parametrize("stream", [False, True])
def test_tools_over_several_turns(talk, stream):
    odd = '{"of":"cuvier",  "m": 1.0}'  # not how json.dumps spells it
    _server, engine, client = talk(f"hm</think>I look.{calls(odd, '{broken')}", "deep</think>2992 m")
    ask = way(client, stream)
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
    prompt = engine.asked()
    assert odd in prompt
    assert "{broken" in prompt
    assert "INVALID_JSON" not in prompt
    order = ["I look.", odd, "2992", "Error: no JSON", "go on"]
    assert [prompt.index(part) for part in order] == sorted(prompt.index(part) for part in order)


def test_the_clients_own_loop_of_tools(talk):
    _, engine, client = talk(f"hm</think>{calls(OF)}", "</think>2992 m")

    @anthropic.beta_tool
    def depth(of: str) -> str:
        """How deep a whale dives."""
        return f"{of}: 2992"

    runner = client.beta.messages.tool_runner(**ASK, tools=[depth])  # tries first to have the service keep the turns
    assert runner.until_done().content[0].text == "2992 m"
    assert "cuvier: 2992" in engine.asked()


def test_the_choice_of_tools(talk, tokenizer):
    _, engine, client = talk("</think>x")
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


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
ODD = ["", " ", "{", "[1]", '{"a":1e999}', '{"a":NaN}', '{"a":"\\ud800"}', '{"a":1,"a":2}', '{"INVALID_JSON":"x"}']


@settings(max_examples=200, derandomize=True)
@given(
    st.sampled_from([*ODD, '{"a":' * 300 + "1" + "}" * 300])
    | st.text()
    | st.builds(json.dumps, JSON, indent=st.sampled_from([None, 2]), ensure_ascii=st.booleans())
)
def test_whatever_is_written_as_arguments_comes_as_an_object_and_back(written):
    found = as_object(written)
    sent = json.loads(json.dumps(found, allow_nan=False))
    assert isinstance(sent, dict)
    memory = WrittenCalls()
    memory.keep("toolu_1", written)
    assert memory.text("toolu_1", sent) == written
    assert as_object(memory.text("toolu_2", sent)) == found  # plainly, where it is not known


def test_a_call_that_was_cut_off_is_never_run():
    assert as_object("") == {}
    assert as_object("", cut=True) == {INVALID_JSON: ""}
    assert as_object('{"of": "cuv', cut=True) == {INVALID_JSON: '{"of": "cuv'}


def test_the_oldest_calls_are_forgotten():
    memory = WrittenCalls(max_chars=2 * (9 + 256))  # each takes its text's room and some of its own
    memory.keep("a", '{"a":1}  ')
    memory.keep("b", '{"b":1}  ')
    memory.keep("c", '{"c":1}  ')
    memory.keep("d", '{"d":1}' + " " * 600)
    assert [memory.text(name, {name: 1}) for name in "abcd"] == ['{"a": 1}', '{"b":1}  ', '{"c":1}  ', '{"d": 1}']
    assert memory.text("b", {"b": 2}) == '{"b": 2}'  # the client has changed it


def test_calls_without_arguments_take_room_too():
    memory = WrittenCalls(max_chars=10 * 256)
    for number in range(100):
        memory.keep(str(number), "")
    assert sum(memory.text(str(number), {}) == "" for number in range(100)) == 10
