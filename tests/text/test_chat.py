import pytest
from hypothesis import given
from hypothesis import strategies as st

from ziphius.text.chat import render_chat
from ziphius.text.tokenizer import Tokenizer
from ziphius.text.tokens import (
    ASSISTANT,
    BOS,
    CALL_BEGIN,
    CALL_END,
    CALLS_BEGIN,
    CALLS_END,
    EOS,
    OUTPUT_BEGIN,
    OUTPUT_END,
    OUTPUTS_BEGIN,
    OUTPUTS_END,
    TOOL_SEP,
    USER,
)


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
        f"{BOS}Be brief.\n{USER}  hi {ASSISTANT}</think>\n\nhello {EOS}{USER}bye{ASSISTANT}</think>bye{EOS}"
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
    with pytest.raises(ValueError, match="role must be 'system', 'user', 'assistant' or 'tool', not 'whale'"):
        tokenizer.render([{"role": "whale", "content": "x"}])


@pytest.mark.parametrize(
    "template",
    [
        "{{ 1 // 0 }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 'a'.split('') }}",
        "{% for %}",
        "{{ none + 'a' }}",
    ],
)
def test_a_template_that_fails_is_refused(tokenizer, template):
    failing = Tokenizer(tokenizer.inner, template)
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    for use in (failing.render, failing.render_training, failing.open_turn):
        with pytest.raises(ValueError, match="chat template"):
            use(talk)
    assert failing.eos_ids == [failing.eos_id]


def test_tools_calls_and_their_outputs(tokenizer):
    tools = [{"type": "function", "function": {"name": "depth", "parameters": {"type": "object"}}}]
    call = {"id": "1", "type": "function", "function": {"name": "depth", "arguments": '{"of": "<whale>"}'}}
    messages = [
        {"role": "user", "content": "how deep?"},
        {"role": "assistant", "content": None, "tool_calls": [call, call]},
        {"role": "tool", "content": "2992", "tool_call_id": "1"},
        {"role": "tool", "content": "m", "tool_call_id": "1"},
    ]
    text = tokenizer.render(messages, tools=tools)
    asked, _, rest = text.partition(USER)
    assert asked.startswith(f"{BOS}## Tools\n")
    assert asked.endswith('\n\n### depth\nParameters: {"type": "object"}')
    one = f'{CALL_BEGIN}depth{TOOL_SEP}{{"of": "<whale>"}}{CALL_END}'
    outputs = f"{OUTPUTS_BEGIN}{OUTPUT_BEGIN}2992{OUTPUT_END}{OUTPUT_BEGIN}m{OUTPUT_END}{OUTPUTS_END}"
    end = f"{EOS}{outputs}{ASSISTANT}<think>\n"
    assert rest == f"how deep?{ASSISTANT}</think>{CALLS_BEGIN}{one}{one}{CALLS_END}{end}"
    silent = "{{ messages[0]['content'] }}{{ messages | length }}"  # a template that knows nothing of tools
    told = render_chat(silent, messages, bos_token=BOS, eos_token=EOS, tools=tools)
    assert told == asked.removeprefix(BOS) + "5"
