"""The faults of other servers, each with the tokens that bring it about."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ziphius.engine.course import Course
from ziphius.serve.dialogue.parse import ReplyParser
from ziphius.text import tokens


@pytest.fixture(scope="module")
def parse(tokenizer):
    """`parse(text, ...)`: special tokens in the text are tokens -> the parser at the end, its deltas checked."""

    def run(text, thinking=False, finished=True, stop=None, **options):
        ids = tokenizer.encode(text) if isinstance(text, str) else text
        parser = ReplyParser(tokenizer, thinking, ends=[tokenizer.eos_id], **options)
        reasoning = content = ""
        calls = {}
        deltas = []
        for place, token in enumerate(ids):
            parser.push(token, stop if place == len(ids) - 1 else None)
            deltas.append(parser.take())
        if finished:
            parser.push(tokenizer.eos_id)
        deltas.append(parser.finish())
        for delta in deltas:
            reasoning += delta.reasoning
            content += delta.content
            for call in delta.calls:
                if call.id is not None:
                    assert call.index == len(calls)
                    calls[call.index] = [call.name, ""]
                calls[call.index][1] += call.arguments
        assert (reasoning, content) == (parser.reasoning, parser.content)
        assert list(calls.values()) == [[call.name, call.arguments] for call in parser.calls]
        parser.deltas = deltas
        return parser

    return run


def call(name, arguments):
    return f"{tokens.CALL_BEGIN}{name}{tokens.TOOL_SEP}{arguments}{tokens.CALL_END}"


def fenced(name, arguments):
    return f"{tokens.CALL_BEGIN}function{tokens.TOOL_SEP}{name}\n```json\n{arguments}\n```{tokens.CALL_END}"


def block(*calls):
    return f"{tokens.CALLS_BEGIN}{''.join(calls)}{tokens.CALLS_END}"


@pytest.mark.parametrize(
    ("text", "thinking", "reasoning", "content"),
    [
        ("I add.\n</think>\n\n4", True, "I add.", "4"),  # opened in the prompt
        ("<think>\nI add.\n</think>\n\n4", False, "I add.", "4"),  # opened by the model
        ("\n<think>I add.</think>4", False, "I add.", "4"),
        ("<think>\nI add.\n</think>\n4", True, "I add.", "4"),  # opened twice
        ("I <think>add.</think>4", True, "I add.", "4"),
        ("I add.</think><think>Again.</think>4", True, "I add.Again.", "4"),
        ("4", False, "", "4"),  # missing
        ("</think>4", False, "", "4"),
        ("</think>4", True, "", "4"),
        ("I add", True, "I add", ""),  # never closed
        ("I add.\n", True, "I add.", ""),
        ("a\n\nb</think> c \n", True, "a\n\nb", "c \n"),
        (" 4", False, "", " 4"),
        ("the tag <think> opens, </think> shuts", False, "", "the tag <think> opens, </think> shuts"),
        ("x</think>the tag </think> shuts, <think>", True, "x", "the tag </think> shuts, <think>"),
        ("", True, "", ""),
    ],
)
def test_thinking_is_never_left_in_content_nor_the_answer_in_reasoning_content(
    parse, text, thinking, reasoning, content
):
    found = parse(text, thinking)
    assert (found.reasoning, found.content) == (reasoning, content)


def test_tags_that_are_spelled_are_text(parse, tokenizer):
    ids = [token for part in ("<th", "ink>a</th", "ink>b") for token in tokenizer.encode(part)]
    assert tokenizer.think_id not in ids
    found = parse(ids)
    assert (found.reasoning, found.content) == ("", "<think>a</think>b")


def test_reasoning_tokens_are_counted_with_the_closing_tag(parse, tokenizer):
    assert parse("I add.</think>4", True).reasoning_tokens == len(tokenizer.encode("I add.</think>"))
    assert parse("<think>I</think>4", False).reasoning_tokens == len(tokenizer.encode("<think>I</think>"))
    assert parse("4", False).reasoning_tokens == 0


@pytest.mark.parametrize("form", [call, fenced])
def test_several_calls_in_either_form(parse, form):
    arguments = ['{"of": "whale"}', "{}", '{"text": "`x`\\n```"}']
    text = "Let me see." + block(*(form(f"dive_{i}", args) for i, args in enumerate(arguments)))
    found = parse(text, tools=True)
    assert found.content == "Let me see."
    assert [(c.name, c.arguments) for c in found.calls] == [(f"dive_{i}", args) for i, args in enumerate(arguments)]
    assert len({c.id for c in found.calls}) == 3


@pytest.mark.parametrize("form", [call, fenced])
def test_calls_are_not_lost_when_begin_and_end_fall_into_one_delta(parse, tokenizer, form):
    """Speculation brings many tokens at once: the parser is asked for its delta only at the end."""
    parser = ReplyParser(tokenizer, True, tools=True)
    for token in tokenizer.encode("hm</think>" + block(form("dive", '{"m": 7}'), form("rise", "{}"))):
        parser.push(token)
    delta = parser.finish()
    assert (delta.reasoning, delta.content) == ("hm", "")
    names = [(c.index, c.name) for c in delta.calls if c.id]
    assert names == [(0, "dive"), (1, "rise")]
    assert "".join(c.arguments for c in delta.calls if c.index == 0) == '{"m": 7}'


def test_arguments_come_in_fragments(parse):
    found = parse(block(call("dive", json.dumps({"words": "one two three four five"}))), tools=True)
    assert sum(bool(delta.calls) for delta in found.deltas) > 3


def test_a_call_from_within_the_thinking_ends_it(parse):
    found = parse("I must look." + block(call("look", "{}")), True, tools=True)
    assert (found.reasoning, found.content, len(found.calls)) == ("I must look.", "", 1)


def test_a_call_without_a_name_becomes_text(parse):
    found = parse(block(f"{tokens.CALL_BEGIN}dive deep{tokens.CALL_END}"), tools=True)
    assert (found.content, found.calls) == ("dive deep", [])
    found = parse(block(call(" ", '{"m": 1}')), tools=True)
    assert (found.content, found.calls) == ('{"m": 1}', [])


def test_a_call_that_the_limit_cuts_off_keeps_what_there_is(parse):
    text = f'{tokens.CALLS_BEGIN}{tokens.CALL_BEGIN}dive{tokens.TOOL_SEP}{{"m": 1'
    assert [(c.name, c.arguments) for c in parse(text, tools=True, finished=False).calls] == [("dive", '{"m": 1')]


def test_without_tools_their_tokens_are_text(parse):
    text = block(call("dive", "{}"))
    assert parse(text).content == text


def test_characters_split_across_tokens_come_whole(parse, tokenizer):
    text = "鲸鱼 🐋 naïve"
    found = parse(text)
    assert found.content == text
    assert all("\ufffd" not in delta.content for delta in found.deltas)
    cut = tokenizer.encode("a🐋")[:-1]
    assert parse(cut, finished=False).content == "a\ufffd"
    assert parse([*cut, *tokenizer.encode("</think>b")], True).reasoning == "a\ufffd"


def test_a_stop_string_and_its_beginnings_are_held_back(parse):
    found = parse("one, two. END", stop="END", stops=["END"])
    assert found.content == "one, two. "
    assert all("E" not in delta.content for delta in found.deltas)
    assert parse("one E", stops=["END"]).content == "one E"  # what only began like it is said in the end
    assert parse("END x END", stop="END", stops=["END"]).content == "END x "  # min_tokens let the first pass


def test_a_stop_string_of_whitespace_at_the_very_beginning(parse):
    assert parse("\n\n", finished=False, stop="\n\n", stops=["\n\n"]).content == ""
    assert parse(" \n\n", finished=False, stop="\n\n", stops=["\n\n"]).content == " "


def test_the_tokens_of_what_was_written(parse, tokenizer):
    found = parse("hm</think>\n\nfour" + block(call("dive", '{"m": 7}')), True, tools=True)
    assert found.written() == [("four", tokenizer.encode("four")), ('{"m": 7}', tokenizer.encode('{"m": 7}'))]


@given(ids=st.lists(st.integers(3, 325), min_size=1, max_size=12))
def test_whatever_a_model_writes_can_be_read_again(parse, tokenizer, ids):
    found = parse(ids, finished=False)
    if found.content and tokenizer.end_think_id not in ids and tokenizer.think_id not in ids:
        assert found.written() == [(found.content, ids)]


PIECES = ["Q", " W\n", "<think>", "</think>", "```", "{}", "🐋", "\n\n", *tokens.TOOLS]


@given(pieces=st.lists(st.sampled_from(PIECES), max_size=12), thinking=st.booleans(), cut=st.integers(0, 40))
def test_any_order_of_marks_loses_no_text(parse, tokenizer, pieces, thinking, cut):
    ids = tokenizer.encode("".join(pieces))[:cut]
    found = parse(ids, thinking, finished=False, tools=True)
    said = found.reasoning + found.content + "".join(c.name + c.arguments for c in found.calls)
    for letter in "QW{🐋":
        assert said.count(letter) == tokenizer.decode(ids).count(letter), (pieces, said)


@given(
    said=st.lists(st.sampled_from(["<think>", "</think>", "whale"]), max_size=8), thinking=st.sampled_from([True, None])
)
def test_reader_and_engine_agree_where_the_thinking_ends(tokenizer, said, thinking):
    """What the engine binds to a form, and looks for stop strings in, is what is shown as the answer."""
    course = Course(tokenizer.thinking, thinking)
    parser = ReplyParser(tokenizer, bool(thinking))
    for token in tokenizer.encode("".join(said)):
        part = parser.push(token)
        course.advance(token)
        if part != "mark":
            assert (part == "reasoning") == course.thinking
