"""Where thinking begins and ends in a reply: one rule for who draws its tokens and for who reads them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ziphius.text.tokens import END_THINK, THINK

OPEN, CLOSE = THINK.encode(), END_THINK.encode()


class Thinking(NamedTuple):
    """Whether a reply thinks, and the end of what was said that may yet belong to a mark (bytes)."""

    on: bool
    tail: bytes = b""


class ThinkingMarks:
    """The tokens of `<think>` and `</think>` in one vocabulary, one each or several.

    The first `</think>` ends the thinking. `<think>` begins it where it `may_open`: before the answer has begun. At any
    other place both are text. Marks that are tokens of their own are known by their ids alone, since a model may also
    spell them; marks of ordinary tokens are known by their letters, since a mark may share its last token with what
    follows (`>` and a line break are often one).
    """

    def __init__(self, open_ids: list[int], close_ids: list[int], token_bytes: Callable[[int], bytes]) -> None:
        """`close_ids` is how the end of the thinking is written where it is forced."""
        self.close_ids = tuple(close_ids)
        one_each = len(open_ids) == len(close_ids) == 1
        self.open_id = open_ids[0] if one_each else None
        self.close_id = close_ids[0] if one_each else None
        self._bytes = token_bytes

    @property
    def are_tokens(self) -> bool:
        """Whether each mark is a token of its own."""
        return self.close_id is not None

    def after(self, now: Thinking, token: int, may_open: bool) -> Thinking:
        """Where the reply stands behind `token`."""
        if self.close_id is not None:
            return Thinking(token != self.close_id if now.on else may_open and token == self.open_id)
        if not (now.on or may_open):
            return Thinking(False)
        said = now.tail + self._bytes(token)
        if now.on:
            return Thinking(False) if CLOSE in said else Thinking(True, said[-len(CLOSE) + 1 :])
        begun = said.lstrip()
        if begun.startswith(OPEN):
            rest = begun[len(OPEN) :]
            return Thinking(False) if CLOSE in rest else Thinking(True, rest[-len(CLOSE) + 1 :])
        return Thinking(False, (begun or b" ") if OPEN.startswith(begun) else b"")


def split_thought(text: str) -> tuple[str, str]:
    """What a written reply thinks and what it answers, parted at its first `</think>`; ("", text) without one."""
    thought, close, answer = text.partition(END_THINK)
    if not close:
        return "", text
    return thought.strip().removeprefix(THINK).strip(), answer.lstrip()
