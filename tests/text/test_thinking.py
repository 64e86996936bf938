import pytest

from ziphius.text.thinking import thinks_after

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
    assert thinks_after(token, thinking, may_open, THINK, END) is after


def test_a_tokenizer_without_the_tags_never_changes():
    assert thinks_after(WORD, True, True, None, None)
    assert not thinks_after(WORD, False, True, None, None)
