"""Calls in the forms of other families than DeepSeek's."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ziphius.serve.contracts.chat import ChatRequest
from ziphius.serve.dialogue.forms import form_of
from ziphius.serve.dialogue.forms.json_call import JsonCall
from ziphius.serve.dialogue.parse import ReplyParser
from ziphius.serve.dialogue.tools import tool_settings
from ziphius.text import tokens
from ziphius.text.tokenizer import Tokenizer

TOOL = {"type": "function", "function": {"name": "dive", "parameters": {"type": "object"}, "strict": True}}
ARGUMENTS = '{"of": "whale {\\"x\\"}", "deep": [1, {"m": 2}]}'


def family(tokenizer, spellings, template):
    """The tokenizer with DeepSeek's tokens for calls under other names."""
    text = tokenizer.inner.to_str()
    for token in tokens.TOOLS:
        text = text.replace(f'"{token}"', f'"{spellings.get(token, "<unused" + token[1:])}"')
    return Tokenizer(type(tokenizer.inner).from_str(text), template)


@pytest.fixture(scope="module")
def hermes(tokenizer):
    names = {tokens.CALL_BEGIN: "<tool_call>", tokens.CALL_END: "</tool_call>"}
    return family(tokenizer, names, "{{ tools }}<tool_call>")


@pytest.fixture(scope="module")
def llama(tokenizer):
    return family(tokenizer, {tokens.CALL_BEGIN: "<|python_tag|>"}, '{{ tools }}{"name": "f", "parameters": {}}')


def read(tokenizer, text, **options):
    parser = ReplyParser(tokenizer, False, tools=True, ends=[tokenizer.eos_id], **options)
    content, calls, steps = "", {}, 0
    for token in [*tokenizer.encode(text), tokenizer.eos_id, None]:
        if token is not None:
            parser.push(token)
        delta = parser.take() if token is not None else parser.finish()
        content += delta.content
        steps += bool(delta.calls)
        for call in delta.calls:
            calls.setdefault(call.index, [call.name, ""])[1] += call.arguments
    assert content == parser.content
    assert [*calls.values()] == [[call.name, call.arguments] for call in parser.calls]
    return content, [*calls.values()], steps


def test_hermes_calls_come_in_fragments(hermes):
    one = f'<tool_call>\n{{"name": "dive", "arguments": {ARGUMENTS}}}\n</tool_call>'
    content, calls, steps = read(hermes, f"Let me see.\n{one}\n{one}")
    assert content.strip() == "Let me see."
    assert calls == [["dive", ARGUMENTS]] * 2
    assert steps > 6
    turned = f'<tool_call>{{"arguments": {ARGUMENTS} , "name": "dive"}}</tool_call>'
    assert read(hermes, turned)[:2] == ("", [["dive", ARGUMENTS]])


def test_of_two_names_and_two_arguments_the_first_count(hermes):
    twice = '{"name": "dive", "arguments": {"a": 1}, "parameters": {"longer": 22}, "name": "rise"}'
    assert read(hermes, f"<tool_call>{twice}</tool_call>")[:2] == ("", [["dive", '{"a": 1}']])


@pytest.mark.parametrize("text", ["dive deep", '["name"]', '{"name": 3}', '{"name": "\\ud800"}', '{"n', "{}"])
def test_what_is_no_hermes_call_becomes_text(hermes, text):
    assert read(hermes, f"<tool_call>{text}</tool_call>")[:2] == (text, [])


@pytest.mark.parametrize("lead", ["", "<|python_tag|>", " \n"])
@pytest.mark.parametrize("parted", ["; ", "\n", ""])
def test_llama_calls_are_the_answer(llama, lead, parted):
    one = f'{{"name": "dive", "parameters": {ARGUMENTS}}}'
    assert read(llama, lead + one + parted + one)[:2] == ("", [["dive", ARGUMENTS]] * 2)


@pytest.mark.parametrize(
    "text", ['{"name": "Bob", "age": 3} is JSON', '{"a": 1}', "{", "{x}", "so {", '{"name": "Bob"}', "plain"]
)
def test_other_json_is_an_answer_of_llama(llama, text):
    assert read(llama, text)[:2] == (text, [])


def test_a_stop_string_in_json_that_is_no_call(llama):
    parser = ReplyParser(llama, False, tools=True, stops=["END"])
    ids = llama.encode('{"a": END')
    for token in ids:
        parser.push(token, "END" if token == ids[-1] else None)
    parser.finish()
    assert parser.content == '{"a": '


@given(text=st.text(alphabet='{}[]",:\\ abname1\n', max_size=60), cut=st.integers(0, 60))
def test_no_text_upsets_the_reader_and_its_pieces_do_not_matter(text, cut):
    whole, parts = JsonCall(), JsonCall()
    rest = whole.push(text)
    behind = parts.push(text[:cut])
    behind += parts.push(text[cut:])
    assert whole.raw + rest == text
    assert (parts.raw, behind, parts.state, parts.name) == (whole.raw, rest, whole.state, whole.name)


@given(
    name=st.text(min_size=1, max_size=5),
    arguments=st.recursive(
        st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=4), max_size=3),
        lambda inner: st.dictionaries(st.text(max_size=3), inner | st.lists(inner, max_size=2), max_size=2),
        max_leaves=4,
    ),
    strict=st.booleans(),
)
def test_what_json_writes_is_read(name, arguments, strict):
    reader = JsonCall(strict)
    assert reader.push(json.dumps({"name": name, "arguments": arguments}) + "!") == "!"
    assert (reader.name, json.loads(reader.take()), reader.state, reader.known) == (name, arguments, "closed", True)


@pytest.mark.parametrize("family", ["hermes", "llama"])
def test_a_call_that_must_come_has_the_form(family, request):
    tokenizer = request.getfixturevalue(family)
    body = {"model": "m", "messages": [{"role": "user", "content": "q"}], "tools": [TOOL], "tool_choice": "required"}
    grammar = tool_settings(ChatRequest.model_validate(body), tokenizer)["constraint"].text
    key = form_of(tokenizer).key
    assert json.dumps(f'{{"name": "dive", "{key}": ')[1:-1] in grammar


def test_without_a_form_tools_are_refused(tokenizer):
    from ziphius.serve.contracts.errors import ApiError

    body = {"model": "m", "messages": [{"role": "user", "content": "q"}], "tools": [TOOL]}
    with pytest.raises(ApiError, match="no form of tool calls"):
        tool_settings(ChatRequest.model_validate(body), family(tokenizer, {}, "{{ messages }}"))
