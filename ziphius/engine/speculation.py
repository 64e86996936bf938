"""Drafting with the model's own prediction module (V3 §5.4.3), and when it pays.

A draft is drawn with the random number that its place will be drawn with, so that the network's draw, which alone
counts, mostly finds it right: what comes out is what plain sampling gives, token for token. Compare Leviathan et al.
2022 (arXiv 2211.17192), who accept more where distributions differ, but whose tokens then depend on the drafts;
Daliri, Musco, Suresh 2024 (arXiv 2408.07978) for drawing both with the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ziphius.engine.passes import Passes
from ziphius.engine.sampling import Sampler
from ziphius.engine.sequence import Sequence


@dataclass(slots=True)
class Span:
    """Hidden states of a sequence that a step has settled: `count` of them, from row `first` and position `start`."""

    sequence: Sequence
    first: int
    start: int
    count: int


class Drafter:
    """Keeps the prediction module's entries up to date and draws drafts."""

    def __init__(self, passes: Passes, sampler: Sampler) -> None:
        self.passes, self.sampler = passes, sampler

    def draft(self, hidden_ND: Tensor, spans: list[Span], depth: int, tables_RM: np.ndarray) -> None:
        """Let the module read the spans, then draft up to `depth` tokens for those whose prompt has been read."""
        tokens: list[int] = []
        index: list[int] = []
        for span in spans:  # each state goes in with the token that follows it
            tokens += span.sequence.tokens[span.start + 1 : span.start + span.count + 1]
            index += range(span.first, span.first + span.count)
        placement = self.passes.place(
            tables_RM, [s.sequence.row for s in spans], [s.start for s in spans], [s.count for s in spans]
        )
        states_ND = self.passes.draft(hidden_ND[index], tokens, placement)
        ends = np.cumsum([span.count for span in spans]) - 1
        chain = [
            (span.sequence, int(end))
            for span, end in zip(spans, ends, strict=True)
            if span.sequence.decodes and span.sequence.finish_reason is None and self._room(span.sequence) > 0
        ]
        for step in range(depth):
            if not chain:
                return
            states_ND = states_ND[[place for _, place in chain]]
            rows = np.array([sequence.row for sequence, _ in chain])
            places = np.array([len(sequence.tokens) + step for sequence, _ in chain])
            guesses = self.sampler.guess(self.passes.logits(states_ND), rows, places)
            for (sequence, _), guess in zip(chain, guesses, strict=True):
                sequence.drafts.append(guess)
            if step + 1 == depth:
                return
            going = [place for place, (sequence, _) in enumerate(chain) if self._room(sequence) > step + 1]
            if not going:
                return
            chain = [(chain[place][0], new) for new, place in enumerate(going)]
            starts = [len(sequence.tokens) - 1 + step for sequence, _ in chain]
            placement = self.passes.place(tables_RM, [s.row for s, _ in chain], starts, [1] * len(chain))
            states_ND = self.passes.draft(states_ND[going], [guesses[place] for place in going], placement)

    def _room(self, sequence: Sequence) -> int:
        """How many drafts it can take: a token must be left for the network, and entries need blocks."""
        held = len(sequence.blocks) * self.passes.memory.block_size
        return min(sequence.limit - 1, held) - len(sequence.tokens)
