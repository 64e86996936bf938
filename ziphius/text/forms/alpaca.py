"""Alpaca: `instruction`, an `input` that it is about, `output`; `system` and `history` may stand beside them."""

from __future__ import annotations

from typing import Any

from ziphius.text.forms.conversation import Conversation, Message, message, parsed, text


def read(row: dict[str, Any]) -> Conversation:
    """ValueError says what is wrong with a row."""
    asked = text(row.get("instruction"), "instruction")
    if row.get("input"):
        asked += f"\n\n{text(row['input'], 'input')}"
    system = [message("system", row["system"])] if row.get("system") else []
    answered = message("assistant", text(row.get("output"), "output"))
    return Conversation([*system, *_earlier(row), message("user", asked), answered])


def _earlier(row: dict[str, Any]) -> list[Message]:
    """What was asked and answered before: a list of pairs."""
    said = []
    for pair in parsed("history", row.get("history") or None) or []:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise ValueError("'history' is no list of pairs of a question and an answer")
        said += [message("user", pair[0]), message("assistant", pair[1])]
    return said
