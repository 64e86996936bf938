"""What the network says of a prompt's own tokens, place by place. Imports no torch.

P tokens of the prompt, K alternatives at each place.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ziphius.engine.tops import Tops

# Cached blocks keep so many alternatives a token; who wants more has the block read again. With 16 tokens a block that
# is about a kilobyte.
MOST_KEPT = 8


@dataclass(frozen=True, slots=True)
class TokenScores:
    """Of consecutive tokens: log-probabilities [P], and the likeliest tokens with theirs [P, K], best first."""

    logprobs: np.ndarray  # float32
    ids: np.ndarray  # int32
    values: np.ndarray  # float32

    @property
    def top(self) -> int:
        """Alternatives a token."""
        return self.ids.shape[1]

    def cut(self, start: int, end: int, top: int) -> TokenScores:
        """A copy of the tokens from `start` to `end`, with `top` alternatives at most."""
        here = slice(start, end)
        return TokenScores(self.logprobs[here].copy(), self.ids[here, :top].copy(), self.values[here, :top].copy())


class PromptScores:
    """The scores of one prompt as they become known, in any order; shared by its request's samples.

    The first token has none: nothing stands before it.
    """

    def __init__(self, length: int, top: int) -> None:
        self.top = top
        self._scores = TokenScores(
            np.full(length, np.nan, np.float32), np.zeros((length, top), np.int32), np.zeros((length, top), np.float32)
        )
        self._known = np.zeros(length, bool)
        self.clear()

    @property
    def complete(self) -> bool:
        return bool(self._known.all())

    def clear(self) -> None:
        """Forget what is known, as when the weights have changed."""
        self._known[:] = False
        self._known[0] = True

    def put(self, start: int, scores: TokenScores) -> None:
        """Take on the scores of the tokens from place `start` on, with at least `top` alternatives each."""
        here = slice(start, start + len(scores.logprobs))
        self._scores.logprobs[here] = scores.logprobs
        self._scores.ids[here] = scores.ids[:, : self.top]
        self._scores.values[here] = scores.values[:, : self.top]
        self._known[here] = True

    def kept(self, start: int, end: int) -> TokenScores | None:
        """What a cached block of these places is to keep; None where some are unknown or not the prompt's."""
        if end > len(self._known) or not self._known[start:end].all():
            return None
        return self._scores.cut(start, end, MOST_KEPT)

    @property
    def first_missing(self) -> int | None:
        """The first place that is not known; None where all are."""
        return None if self.complete else int(self._known.argmin())

    def logprobs(self) -> list[float | None]:
        """One a token, None for the first."""
        return [None, *self._scores.logprobs[1:].tolist()]

    def top_logprobs(self) -> list[Tops]:
        """The likeliest tokens at each place, best first; none at the first."""
        rows = zip(self._scores.ids[1:].tolist(), self._scores.values[1:].tolist(), strict=True)
        return [Tops((), ()), *(Tops(ids, values) for ids, values in rows)]
