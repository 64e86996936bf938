"""The arguments of a call as an object, and back to the text that the model wrote. Imports no torch."""

from __future__ import annotations

import json
from collections import OrderedDict
from threading import Lock
from typing import Any

from pydantic_core import from_json

INVALID_JSON = "INVALID_JSON"  # under this key Anthropic's documents have clients wrap what is none


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
    """The text of calls that were sent as objects, by the id of the call; the oldest are dropped.

    A call read back in the model's own spelling is found in the cache, and is what the model would write.
    """

    def __init__(self, max_chars: int = 4_000_000) -> None:
        self._capacity = self._room = max_chars
        self._texts: OrderedDict[str, str] = OrderedDict()
        self._lock = Lock()  # prompts are made in threads

    def keep(self, id: str, arguments: str) -> None:
        """Remember a call, unless its text can be told from its object."""
        if _spelled(as_object(arguments)) == arguments or len(arguments) > self._capacity:
            return
        with self._lock:
            self._texts[id] = arguments
            self._room -= len(arguments)
            while self._room < 0:
                self._room += len(self._texts.popitem(last=False)[1])

    def text(self, id: str, value: dict[str, Any]) -> str:
        """How the model wrote `value` in the call `id`; plain JSON where that is not known, or the object another."""
        with self._lock:
            written = self._texts.get(id)
        return written if written is not None and as_object(written) == value else _spelled(value)


def _spelled(value: dict[str, Any]) -> str:
    wrapped = value.get(INVALID_JSON) if len(value) == 1 else None
    return wrapped if isinstance(wrapped, str) else json.dumps(value, ensure_ascii=False)
