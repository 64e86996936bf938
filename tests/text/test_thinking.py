import pytest
from hypothesis import given
from hypothesis import strategies as st

from ziphius.engine.course import Course
from ziphius.serve.dialogue.parse import ReplyParser
from ziphius.text.thinking import Thinking, ThinkingMarks, split_thought
from ziphius.text.tokenizer import Tokenizer
from ziphius.text.turns import opened

THINK, END, WORD = 7, 8, 9


@pytest.mark.parametrize(
    ("token", "thinking", "may_open", "after"),
    [
        (WORD, True, False, True),
        (END, True, False, False),
        (THINK, True, False, True),  # opened already
        (THINK, False, True, True),
        (THINK, False, False, False),  # the answer has begun
        (END, False, True, False),
        (WORD, False, True, False),
    ],
)
def test_where_thinking_stands(token, thinking, may_open, after):
    marks = ThinkingMarks([THINK], [END], lambda token: b"")
    assert marks.after(Thinking(thinking), token, may_open) == Thinking(after)


@pytest.fixture(scope="module")
def spelt(tokenizer):
    """A tokenizer in which both marks are ordinary tokens."""
    text = tokenizer.inner.to_str()
    for mark in ("<think>", "</think>"):
        text = text.replace(f'"{mark}"', f'"{mark[:-1]}er>"')
    found = Tokenizer(type(tokenizer.inner).from_str(text))
    assert not found.thinking.are_tokens
    assert len(found.thinking.close_ids) > 1
    return found


@pytest.mark.parametrize(
    ("text", "thinking", "reasoning", "content"),
    [
        ("hm\n</think>\n\nyes", True, "hm", "yes"),
        ("<think>\nhm\n</think>\n\nyes", False, "hm", "yes"),
        ("\n<think>hm</think>yes", False, "hm", "yes"),
        ("a <think>b</think>", False, "", "a <think>b</think>"),
        ("</thin </think>b</think>c", True, "</thin", "b</think>c"),
        ("<thin", False, "", "<thin"),
        ("<think>no end", False, "no end", ""),
    ],
)
def test_marks_of_ordinary_tokens_are_read(spelt, text, thinking, reasoning, content):
    parser = ReplyParser(spelt, thinking)
    shown = ["", ""]
    for token in spelt.encode(text):
        parser.push(token)
        delta = parser.take()
        shown = [shown[0] + delta.reasoning, shown[1] + delta.content]
    delta = parser.finish()
    assert [shown[0] + delta.reasoning, shown[1] + delta.content] == [reasoning, content]
    assert (parser.reasoning, parser.content) == (reasoning, content)


@given(
    said=st.lists(st.sampled_from(["<think>", "</think>", "<", "/think>", "whale", "\n"]), max_size=8),
    thinking=st.sampled_from([True, None]),
)
def test_reader_and_engine_agree_on_marks_of_ordinary_tokens(spelt, said, thinking):
    course, parser = Course(spelt.thinking, thinking), ReplyParser(spelt, bool(thinking))
    for token in spelt.encode("".join(said)):
        parser.push(token)
        course.advance(token)
        assert parser.thinking == course.thinking


def test_a_budget_writes_a_mark_of_ordinary_tokens(spelt):
    course = Course(spelt.thinking, thinking=True, budget=2)
    for token in spelt.encode("ab"):
        assert course.forced() is None
        course.advance(token)
    forced = []
    while (token := course.forced()) is not None:
        forced.append(token)
        course.advance(token)
    assert "</think>" in spelt.decode(forced)
    assert spelt.thinking.close_ids[: len(forced)] == tuple(forced)
    course.retreat(len(forced))
    assert course.thinking
    assert course.forced() == forced[0]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("<think>\na\n</think>\n\nb", ("a", "b")),
        ("a</think>b</think>", ("a", "b</think>")),
        ("<think>a", ("", "<think>a")),
        ("b", ("", "b")),
    ],
)
def test_a_written_reply_is_parted_at_its_first_end(text, parts):
    assert split_thought(text) == parts


@given(told=st.text("ab", max_size=6), prompt=st.text("ab", max_size=6))
def test_a_turn_is_opened_where_the_texts_part(told, prompt):
    turn = opened(told, prompt + "<think>\n")
    assert turn.thinking is True
    assert turn.head == prompt
