"""What a reply says: all of it so far, and what each step adds. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Part = Literal["reasoning", "content", "call", "mark"]


@dataclass(slots=True)
class CallDelta:
    """The beginning of a call (`id` and `name` set) or more of its arguments."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(slots=True)
class Delta:
    reasoning: str = ""
    content: str = ""
    calls: list[CallDelta] = field(default_factory=list)

    def followed_by(self, later: Delta) -> Delta:
        """Both as one."""
        return Delta(self.reasoning + later.reasoning, self.content + later.content, self.calls + later.calls)


@dataclass(slots=True)
class Piece:
    """What a reply says in one go: thinking, answer, or the arguments of a call, as they came."""

    part: Part
    texts: list[str] = field(default_factory=list)
    call: CallDelta | None = None

    @property
    def text(self) -> str:
        return "".join(self.texts)
