"""ShareGPT: `conversations` of turns with `from` and `value`; `system` and `tools` may stand beside them."""

from __future__ import annotations

from typing import Any

from ziphius.text.forms.conversation import Conversation, message, tools_of, turns_of


def read(row: dict[str, Any]) -> Conversation:
    """ValueError says what is wrong with a row."""
    turns = turns_of(row, "conversations")
    system = [message("system", row["system"])] if row.get("system") else []
    said = [message(turn.get("from", turn.get("role")), turn.get("value", turn.get("content")), turn) for turn in turns]
    return Conversation(system + said, tools_of(row))
