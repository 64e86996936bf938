"""`messages`: several turns as the OpenAI API has them, with system, tools and tool results; `tools` beside them."""

from __future__ import annotations

from typing import Any

from ziphius.text.forms.conversation import Conversation, message, tools_of, turns_of


def read(row: dict[str, Any]) -> Conversation:
    """ValueError says what is wrong with a row."""
    turns = turns_of(row, "messages")
    return Conversation([message(turn.get("role"), turn.get("content"), turn) for turn in turns], tools_of(row))
