"""How many tokens to draft: as many as pay, by what passes have taken and drafts have been worth. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from ziphius.engine.settings import EngineSettings

_Key = TypeVar("_Key")

_DEEPEST = 3  # of what 'auto' tries
_PERIOD = 16  # steps between two choices
_RENEWAL = 128  # choices after which old experience is dropped and everything tried again
_HOPE = 0.8  # acceptance of a draft before any was seen


class Pace:
    """Chooses the depth of drafting, and keeps count of drafts."""

    def __init__(self, settings: EngineSettings, layers: int, modules: int) -> None:
        """Raises ValueError for drafts asked of a model without a prediction module."""
        asked = settings.speculation
        if isinstance(asked, int) and not modules:
            raise ValueError(
                f"speculation is {asked}, but the model has no prediction module to draft with "
                "(num_nextn_predict_layers is 0); leave it 'auto' or 'off'"
            )
        self.drafted = self.accepted = 0
        self._fixed = asked if isinstance(asked, int) else 0 if asked == "off" or not modules else None
        self._widest = settings.max_batch_tokens
        self._layers = layers
        self._depth = 0
        self._steps = self._choices = 0
        self._forget()

    def depth(self, rows: int) -> int:
        """Tokens to draft for each of `rows` answers."""
        if self._fixed is not None:
            return self._fixed
        if self._steps % _PERIOD == 0:
            self._choices += 1
            if self._choices % _RENEWAL == 0:
                self._forget()
            self._depth = self._choose(max(rows, 1))
        self._steps += 1
        return self._depth

    def note_step(self, tokens: int, seconds: float) -> None:
        """A step of running answers alone read `tokens` and drew from all of them."""
        _note(self._step_seconds, _bucket(tokens), seconds)

    def note_drafting(self, rows: int, depth: int, seconds: float) -> None:
        _note(self._draft_seconds, (_bucket(rows), depth), seconds)

    def note_drafts(self, offered: Sequence[int], accepted: Sequence[int]) -> None:
        """Of each sample's drafts, how many there were and how many were right."""
        self.drafted += sum(offered)
        self.accepted += sum(accepted)
        for place in range(min(max(offered, default=0), _DEEPEST)):
            reached = [a for o, a in zip(offered, accepted, strict=True) if o > place and a >= place]
            if reached:
                share = sum(a > place for a in reached) / len(reached)
                self._acceptance[place] += 0.05 * (share - self._acceptance[place])

    def _choose(self, rows: int) -> int:
        depths = [d for d in range(_DEEPEST + 1) if rows * (1 + d) <= self._widest]
        return max(depths, key=lambda depth: (self._tokens(depth) / self._seconds(rows, depth), -depth), default=0)

    def _tokens(self, depth: int) -> float:
        """Tokens that a step brings to an answer."""
        expected = right = 1.0
        for share in self._acceptance[:depth]:
            right *= share
            expected += right
        return expected

    def _seconds(self, rows: int, depth: int) -> float:
        """What a step takes; where none was seen, the least it may take, so that it is tried."""
        read = _nearest(self._step_seconds, _bucket(rows * (1 + depth)))
        if not depth:
            return read
        key = (_bucket(rows), depth)
        return read + self._draft_seconds.get(key, depth * read / (self._layers + 1))

    def _forget(self) -> None:
        self._step_seconds: dict[int, float] = {}
        self._draft_seconds: dict[tuple[int, int], float] = {}
        self._acceptance = [_HOPE] * _DEEPEST


def _bucket(n: int) -> int:
    return (n - 1).bit_length()


def _note(table: dict[_Key, float], key: _Key, seconds: float) -> None:
    old = table.get(key, seconds)
    table[key] = old + 0.2 * (min(seconds, 2 * old) - old)  # a step that the machine held up counts little


def _nearest(table: dict[int, float], bucket: int) -> float:
    """The entry of the bucket; without one as much as the next below, or its share of the next above."""
    if not table:
        return 1.0
    below = [key for key in table if key <= bucket]
    return table[max(below)] if below else table[min(table)] / 2.0 ** (min(table) - bucket)
