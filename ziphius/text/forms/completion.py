"""`prompt` and `completion`, TRL's form: each a text or a list of messages; `tools` may stand beside them.

Texts are what a user asks and what the assistant answers.
"""

from __future__ import annotations

from typing import Any

from ziphius.text.forms.conversation import Conversation, Message, message, text, tools_of, turns_of


def read(row: dict[str, Any]) -> Conversation:
    """ValueError says what is wrong with a row."""
    return Conversation(_side(row, "prompt", "user") + _side(row, "completion", "assistant"), tools_of(row))


def _side(row: dict[str, Any], key: str, role: str) -> list[Message]:
    if isinstance(row.get(key), list):
        return [message(turn.get("role"), turn.get("content"), turn) for turn in turns_of(row, key)]
    return [message(role, text(row.get(key), key))]
