"""Where the terminal's answers come from. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Protocol

Kind = Literal["reasoning", "content", "note"]


class Source(Protocol):
    """A model that answers; `what` says which."""

    what: str

    def reply(self, messages: list[dict[str, str]], thinking: bool) -> Iterator[tuple[Kind, str]]:
        """The pieces of an answer as they come; closing the iterator stops the work."""
        ...
