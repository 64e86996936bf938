"""Hermes' form, which Qwen2.5, QwQ and Qwen3 write: `<tool_call>` {"name": …, "arguments": …} `</tool_call>`.

Source: the chat templates published with Qwen2.5 and Qwen3.
"""

from __future__ import annotations

from ziphius.serve.dialogue.forms.form import CallForm
from ziphius.text.tokenizer import Tokenizer

BEGIN, END = "<tool_call>", "</tool_call>"


def find(tokenizer: Tokenizer) -> CallForm | None:
    """Where the template writes calls so and both tags are tokens."""
    begin, end = tokenizer.inner.token_to_id(BEGIN), tokenizer.inner.token_to_id(END)
    if begin is None or end is None or BEGIN not in (tokenizer.template("tools") or ""):
        return None
    return CallForm(call_begin=begin, call_end=end, key="arguments", gap="\n")
