"""`prompt` and `response`: one question and its answer, before which stands its thinking in `<think>…</think>`."""

from __future__ import annotations

from typing import Any

from ziphius.text.forms.conversation import Conversation, message, text


def read(row: dict[str, Any]) -> Conversation:
    """ValueError says what is wrong with a row."""
    asked, answered = (text(row.get(key), key) for key in ("prompt", "response"))
    return Conversation([message("user", asked), message("assistant", answered)])
