"""The arguments of a call as an object, and back to the text that the model wrote. Imports no torch."""

from __future__ import annotations

import json
from typing import Any

from pydantic_core import from_json

from ziphius.serve.dialogue.remembered import Remembered

INVALID_JSON = "INVALID_JSON"  # under this key Anthropic's documents have clients wrap what is none
_OVERHEAD = 256  # what an entry of the memory takes beside its text, in characters


def as_object(arguments: str, cut: bool = False) -> dict[str, Any]:
    """The arguments of a call; nothing at all is no arguments, unless the call was `cut` off.

    What is no JSON object, or one that some client cannot read (an infinity, half a surrogate pair, 200 levels), comes
    whole as `{"INVALID_JSON": text}`: a tool must never be run with a part of what was meant for it.
    """
    if not arguments.strip() and not cut:
        return {}
    try:
        found = from_json(arguments, allow_inf_nan=False)
        json.dumps(found, allow_nan=False)  # 1e999 is a number to the parser
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {INVALID_JSON: arguments}


class WrittenCalls:
    """The text of calls that were sent as objects, by the id of the call; those unused for longest are dropped.

    A call read back in the model's own spelling is found in the cache, and is what the model would write.
    """

    def __init__(self, max_chars: int = 4_000_000) -> None:
        self._texts: Remembered[str, str] = Remembered(max_chars)

    def keep(self, id: str, arguments: str) -> None:
        """Remember a call, unless its text can be told from its object."""
        if _spelled(as_object(arguments)) != arguments:
            self._texts.keep(id, arguments, _OVERHEAD + len(arguments))

    def text(self, id: str, value: dict[str, Any]) -> str:
        """How the model wrote `value` in the call `id`; plain JSON where that is not known, or the object another."""
        written = self._texts.find(id)
        return written if written is not None and as_object(written) == value else _spelled(value)


def _spelled(value: dict[str, Any]) -> str:
    wrapped = value.get(INVALID_JSON) if len(value) == 1 else None
    return wrapped if isinstance(wrapped, str) else json.dumps(value, ensure_ascii=False)
