"""Texts of people, in which the spelling of a control token is text like any other."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

_MARKS = [chr(code) for code in range(0xFDD0, 0xFDF0)]  # Unicode's noncharacters, which no text is meant to hold


def free_marks(text: str, count: int) -> list[str]:
    """Characters that do not stand in a text; ValueError where it leaves too few."""
    marks = [mark for mark in _MARKS if mark not in text][:count]
    if len(marks) < count:
        raise ValueError("the messages hold all of Unicode's noncharacters U+FDD0 to U+FDEF; leave some out")
    return marks


class Breaker:
    """Puts a mark inside each control token that a text spells, and encodes what stands between the marks."""

    def __init__(self, spellings: Sequence[str], normalize: Callable[[str], str] | None = None) -> None:
        """`normalize`: how texts are changed before tokens are looked for in them, where they are."""
        rests: dict[str, list[str]] = defaultdict(list)
        for spelling in spellings:
            rests[spelling[0]].append(re.escape(spelling[1:]))
        # the first letter of each, so that one that begins inside another is found, too
        firsts = (f"{re.escape(first)}(?={'|'.join(rest)})" for first, rest in rests.items())
        self._begins = re.compile("|".join(firsts) or "(?!)")
        self._normalize = normalize

    def broken(self, value: Any, mark: str) -> Any:
        """`value`, JSON of any shape, with `mark` inside every control token that its strings spell.

        ValueError where it is nested so deeply that it cannot be gone through.
        """
        try:
            return self._broken(value, mark)
        except RecursionError:
            raise ValueError("a message is nested too deeply") from None

    def _broken(self, value: Any, mark: str) -> Any:
        if isinstance(value, str):
            text = self._begins.sub(rf"\g<0>{mark}", value)
            hidden = self._normalize is not None and self._begins.search(self._normalize(text))
            return mark.join(value) if hidden else text
        if isinstance(value, dict):
            return {self._broken(key, mark): self._broken(part, mark) for key, part in value.items()}
        return [self._broken(part, mark) for part in value] if isinstance(value, list) else value

    @staticmethod
    def encode(text: str, mark: str, first: Callable[[str], list[int]], more: Callable[[str], list[int]]) -> list[int]:
        """The ids of a broken text; `more` encodes what goes on from another text, `first` what does not."""
        head, *rest = text.split(mark)
        return [*first(head), *(token for part in rest for token in more(part))]
