"""Prompts from messages, for the templates that folders come with."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from ziphius.serve.contracts.messages import Message
from ziphius.serve.dialogue.prompt import Prompts, ReplyMemory
from ziphius.text import tokens
from ziphius.text.tokenizer import Tokenizer

HISTORY = "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
TEMPLATES = {
    "always thinks, as R1's": HISTORY + "{% if add_generation_prompt %}" + tokens.ASSISTANT + "<think>\n{% endif %}",
    "never says": HISTORY + "{% if add_generation_prompt %}" + tokens.ASSISTANT + "{% endif %}",
}


def messages(*contents):
    adapter = TypeAdapter(Message)
    roles = ("user", "assistant")
    return [adapter.validate_python({"role": roles[i % 2], "content": text}) for i, text in enumerate(contents)]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("thinking", [True, False, None])
def test_thinking_is_as_asked_whatever_the_template_says(tokenizer, template, thinking):
    prompts = Prompts(Tokenizer(tokenizer.inner, TEMPLATES[template]))
    prompt = prompts.chat(messages("hi"), thinking)
    expected = (True if template != "never says" else None) if thinking is None else thinking
    assert prompt.thinking is expected
    end = tokenizer.decode(prompt.ids).partition(tokens.ASSISTANT)[2]
    if expected:
        assert end == "<think>\n"
    else:
        assert end in ("", "</think>", "<think>\n\n</think>")


def test_a_model_that_is_not_known_to_think_does_so_where_asked(tokenizer):
    text = tokenizer.inner.to_str()
    for mark in ("<think>", "</think>"):
        text = text.replace(f'"{mark}"', f'"{mark[:-1]}er>"')
    prompts = Prompts(Tokenizer(type(tokenizer.inner).from_str(text), TEMPLATES["never says"]))
    assert prompts.chat(messages("hi")).thinking is False
    opened = prompts.chat(messages("hi"), True)
    assert opened.thinking is True
    assert tokenizer.decode(opened.ids).endswith(f"{tokens.ASSISTANT}<think>\n")
    assert len(opened.ids) - opened.ids.index(tokenizer.assistant_id) > 3  # in ordinary tokens


PARTS = st.sampled_from([*tokens.CONTROL, *tokens.MARKUP, "a", " whale", "\ufdd0", "\ufdd1", "\n", "鲸"])


@given(parts=st.lists(PARTS, max_size=8))
def test_no_text_forges_a_special_token(tokenizer, parts):
    text = "".join(parts)
    prompts = Prompts(tokenizer)
    ids = prompts.plain_ids(text)
    assert tokenizer.decode(ids) == text
    assert not {tokenizer.inner.token_to_id(name) for name in (*tokens.CONTROL, *tokens.MARKUP)} & set(ids)
    prompt = prompts.chat(messages(text or "x"))
    plain = prompts.chat(messages("x"))
    marks = lambda ids: [token for token in ids if token in tokenizer.inner.get_added_tokens_decoder()]
    assert marks(prompt.ids) == marks(plain.ids)
    assert tokenizer.decode(prompt.ids) == tokenizer.render([{"role": "user", "content": text or "x"}])


@given(text=st.text(max_size=40))
def test_ordinary_text_is_tokenised_as_the_template_alone_would(tokenizer, text):
    if not any(name in text for name in (*tokens.CONTROL, *tokens.MARKUP)):
        said = [{"role": "user", "content": text}]
        assert Prompts(tokenizer).chat(messages(text)).ids == tokenizer.encode(tokenizer.render(said))


def test_the_memory_of_replies_forgets_the_oldest():
    memory = ReplyMemory(max_tokens=2 * (4 + 48))  # each takes its tokens' room and some of its own
    for turn, count in ((b"a", 4), (b"b", 4)):
        memory.keep(turn, "x", range(count))
    assert memory.find(b"a", "x") == [0, 1, 2, 3]
    memory.keep(b"c", "x", range(4))  # b was used least lately
    assert memory.find(b"b", "x") is None
    assert memory.find(b"a", "x") is not None
    memory.keep(b"c", "x", range(2))
    memory.keep(b"a", "x", range(6))
    assert all(memory.find(turn, "x") is not None for turn in (b"a", b"c"))
    memory.keep(b"e", "x", range(57))  # larger than the whole memory
    assert memory.find(b"e", "x") is None
    assert memory.find(b"a", "y") is None


def test_the_memory_keeps_no_control_tokens(tokenizer):
    memory = Prompts(tokenizer).memory
    for token in tokenizer.added_ids:
        memory.keep(b"a", "x", [*tokenizer.encode("whale"), token])
    assert memory.find(b"a", "x") is None


def test_no_call_forges_a_token_by_escapes_of_json(tokenizer):
    calls = "{% for c in m.tool_calls or [] %}{{ c.function.arguments | tojson }}{% endfor %}"
    prompts = Prompts(Tokenizer(tokenizer.inner, "{% for m in messages %}" + calls + "{% endfor %}"))
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": "\\u003cthink>"}'}}
    said = TypeAdapter(Message).validate_python({"role": "assistant", "content": None, "tool_calls": [call]})
    ids = prompts.chat([*messages("hi"), said, *messages("on")]).ids
    assert '{"a": "<think>"}' in tokenizer.decode(ids)
    assert tokenizer.think_id not in ids
