"""The likeliest tokens of a place, kept small: an answer can have twenty for each of its tokens. Imports no torch."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator


class Tops:
    """Pairs of a token and its log-probability (fp32), best first; 8 bytes a pair instead of a hundred."""

    __slots__ = ("_logprobs", "_tokens")

    def __init__(self, tokens: Iterable[int], logprobs: Iterable[float]) -> None:
        self._tokens, self._logprobs = array("i", tokens), array("f", logprobs)

    def __len__(self) -> int:
        return len(self._tokens)

    def __iter__(self) -> Iterator[tuple[int, float]]:
        return zip(self._tokens, self._logprobs, strict=True)
