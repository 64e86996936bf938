"""Texts of people, in which the spelling of a control token is text like any other."""

from __future__ import annotations

import re
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

    def __init__(self, spellings: Sequence[str]) -> None:
        """`spellings`: the longest first."""
        self._special = re.compile("|".join(map(re.escape, spellings)) or "(?!)")

    def broken(self, value: Any, mark: str) -> Any:
        """`value`, JSON of any shape, with `mark` inside every control token that its strings spell."""
        if isinstance(value, str):
            return self._special.sub(lambda found: found[0][0] + mark + found[0][1:], value)
        if isinstance(value, dict):
            return {self.broken(key, mark): self.broken(part, mark) for key, part in value.items()}
        return [self.broken(part, mark) for part in value] if isinstance(value, list) else value

    @staticmethod
    def encode(text: str, mark: str, first: Callable[[str], list[int]], more: Callable[[str], list[int]]) -> list[int]:
        """The ids of a broken text; `more` encodes what goes on from another text, `first` what does not."""
        head, *rest = text.split(mark)
        return [*first(head), *(token for part in rest for token in more(part))]
