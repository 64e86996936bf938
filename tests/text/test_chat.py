import pytest
from hypothesis import given
from hypothesis import strategies as st

from ziphius.text.chat import split_thinking
from ziphius.text.tokens import ASSISTANT, BOS, EOS, USER


def test_one_question(tokenizer):
    messages = [{"role": "user", "content": "1+1?"}]
    assert tokenizer.render(messages) == f"{BOS}{USER}1+1?{ASSISTANT}<think>\n"
    assert tokenizer.render(messages, thinking=False) == f"{BOS}{USER}1+1?{ASSISTANT}</think>"
    assert tokenizer.render(messages, add_generation_prompt=False) == f"{BOS}{USER}1+1?"
    ids = tokenizer.prompt_ids("1+1?")
    assert tokenizer.decode(ids) == tokenizer.render(messages)
    assert ids[:2] == [tokenizer.bos_id, tokenizer.user_id]
    assert ids[-3:-1] == [tokenizer.assistant_id, tokenizer.think_id]
    assert tokenizer.prompt_ids("1+1?", thinking=False)[-2:] == [tokenizer.assistant_id, tokenizer.end_think_id]


def test_history_loses_its_thinking_and_keeps_its_whitespace(tokenizer):
    messages = [
        {"role": "system", "content": "Be brief.\n"},
        {"role": "user", "content": "  hi "},
        {"role": "assistant", "content": "<think>a</think>b</think>\n\nhello "},
        {"role": "user", "content": "bye"},
        {"role": "assistant", "content": "bye"},
    ]
    assert tokenizer.render(messages, add_generation_prompt=False) == (
        f"{BOS}Be brief.\n{USER}  hi {ASSISTANT}\n\nhello {EOS}{USER}bye{ASSISTANT}bye{EOS}"
    )


def test_system_messages_come_first_and_are_joined(tokenizer):
    roles = [("user", "u"), ("system", "a"), ("system", "b")]
    messages = [{"role": role, "content": content} for role, content in roles]
    assert tokenizer.render(messages, add_generation_prompt=False) == f"{BOS}a\n\nb{USER}u"


@given(content=st.text())
def test_content_is_never_read_as_template(tokenizer, content):
    content = "{{ 7*7 }}{% raw %}" + content
    text = tokenizer.render([{"role": "user", "content": content}], add_generation_prompt=False)
    assert text == BOS + USER + content


def test_bad_messages_are_refused(tokenizer):
    with pytest.raises(ValueError, match="message 0 needs a string 'content', not None"):
        tokenizer.render([{"role": "assistant", "content": None}])
    with pytest.raises(ValueError, match="message 1 needs a string 'role'"):
        tokenizer.render([{"role": "user", "content": "x"}, {"content": "x"}])
    with pytest.raises(ValueError, match="role must be 'system', 'user' or 'assistant', not 'tool'"):
        tokenizer.render([{"role": "tool", "content": "x"}])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I add.\n</think>\n\n2 \n", ("I add.", "2")),
        ("<think>\nI add.</think>2", ("I add.", "2")),
        ("</think>2", ("", "2")),
        ("a</think>b</think>c", ("a", "b</think>c")),
        ("I add, and add ", (None, "I add, and add")),
        ("", (None, "")),
    ],
)
def test_split_thinking(text, expected):
    assert split_thinking(text) == expected
