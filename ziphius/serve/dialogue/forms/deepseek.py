"""DeepSeek's form: tokens around the calls, around each, and between a name and its arguments.

Source: the chat templates published with DeepSeek-V3/R1 and V3.1.
"""

from __future__ import annotations

from ziphius.serve.dialogue.forms.form import CallForm
from ziphius.text import tokens
from ziphius.text.tokenizer import Tokenizer


def find(tokenizer: Tokenizer) -> CallForm | None:
    """Where the vocabulary has all of the form's tokens."""
    ids = {name: tokenizer.inner.token_to_id(name) for name in tokens.TOOLS}
    if None in ids.values():
        return None
    return CallForm(
        calls_begin=ids[tokens.CALLS_BEGIN],
        calls_end=ids[tokens.CALLS_END],
        call_begin=ids[tokens.CALL_BEGIN],
        call_end=ids[tokens.CALL_END],
        sep=ids[tokens.TOOL_SEP],
    )
