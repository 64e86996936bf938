"""Llama 3.1's form: the whole answer is {"name": …, "parameters": …}, perhaps behind the token `<|python_tag|>`.

Source: the chat template published with Llama 3.1.
"""

from __future__ import annotations

from ziphius.serve.dialogue.forms.form import CallForm
from ziphius.text.chat import knows
from ziphius.text.tokenizer import Tokenizer

TAG, KEY = "<|python_tag|>", "parameters"


def find(tokenizer: Tokenizer) -> CallForm | None:
    """Where the template, told of tools, writes the arguments of a call under this key."""
    template = tokenizer.template("tools")
    if template is None or not knows(template, "tools") or f'"{KEY}": ' not in template:
        return None
    tag = tokenizer.inner.token_to_id(TAG)
    return CallForm(key=KEY, silent=frozenset() if tag is None else frozenset([tag]))
