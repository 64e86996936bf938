"""A call as JSON, read letter by letter as it comes: its name, then its arguments as the model spells them."""

from __future__ import annotations

import json
from typing import Literal

_ARGUMENTS = ("arguments", "parameters")
_FIRST = ("name", "type", *_ARGUMENTS)


class JsonCall:
    """Follows one JSON object, without trusting it to be one: what is no call is found out, and nothing is evaluated.

    `name` is None until it is known. `strict`: an object that may be no call is one only when its name is followed by
    arguments.
    """

    def __init__(self, strict: bool = False) -> None:
        self.raw = ""
        self.name: str | None = None
        self.state: Literal["open", "closed", "no call"] = "open"
        self._strict = strict
        self._depth = 0
        self._string = -1  # where an open string began
        self._escaped = False
        self._key: str | None = None  # of the value that is being read, at the top
        self._awaits_key = True
        self._value = -1  # where that value began
        self._arguments: tuple[int, int | None] | None = None
        self._given = 0  # letters of the arguments that `take` has given

    def push(self, text: str) -> str:
        """Read on; what stands behind the end of the object comes back."""
        for place, letter in enumerate(text):
            if self.state != "open":
                return text[place:]
            self.raw += letter
            self._read(letter)
        return ""

    def take(self) -> str:
        """The arguments that are new, once the name is known."""
        if self._arguments is None or self.name is None:
            return ""
        begin, end = self._arguments
        found = self.raw[begin + self._given : end]
        self._given += len(found)
        return found

    @property
    def known(self) -> bool:
        """Whether it is a call for sure, as far as a reader can tell."""
        return self.name is not None and (self._arguments is not None or not self._strict)

    def _read(self, letter: str) -> None:
        if self._string >= 0:
            self._read_string(letter)
        elif letter == '"':
            self._begin_value()
            self._string = len(self.raw) - 1
        elif letter in "{[":
            self._begin_value()
            self._depth += 1
        elif letter in "}]":
            self._end_value()
            self._depth -= 1
            if self._depth <= 0:
                self.state = "closed"
        elif letter == "," and self._depth == 1:
            self._end_value()
            self._key, self._awaits_key = None, True
        elif not (letter.isspace() or letter == ":"):
            self._begin_value()
            if self._depth == 0:
                self.state = "no call"

    def _read_string(self, letter: str) -> None:
        if self._escaped:
            self._escaped = False
        elif letter == "\\":
            self._escaped = True
        elif letter == '"':
            text = _text(self.raw[self._string :])
            self._string = -1
            if self._depth == 1 and self._awaits_key:
                self._key, self._awaits_key, self._value = text, False, -1
                if self._strict and text not in _FIRST:
                    self.state = "no call"
            elif self._depth == 1 and self._key == "name" and self.name is None:
                self.name = text
            elif self._depth == 0:
                self.state = "no call"

    def _begin_value(self) -> None:
        if self._depth == 1 and not self._awaits_key and self._value < 0:
            self._value = len(self.raw) - 1
            if self._key in _ARGUMENTS and self._arguments is None:  # the first counts: it may be on its way
                self._arguments = self._value, None

    def _end_value(self) -> None:
        """The end of a value at the top, before the letter just read."""
        if self._depth == 1 and self._key in _ARGUMENTS and self._arguments is not None:
            begin, end = self._arguments
            if end is None:
                self._arguments = begin, begin + len(self.raw[begin:-1].rstrip())


def _text(quoted: str) -> str | None:
    """None for what is no text: also for half a character, which no client could be sent."""
    try:
        found = json.loads(quoted)
        found.encode()
    except ValueError:
        return None
    return found if isinstance(found, str) else None
