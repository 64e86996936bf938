"""Samples that have nothing but a token a step before them: they go in arrays, with hardly any work for each.

B samples.
"""

from __future__ import annotations

import numpy as np

from ziphius.engine.sampling import Drawn
from ziphius.engine.sequence import Sequence


class Lockstep:
    """`tokens_B` are to be read next, at `positions_B`, for the samples at `rows_B`."""

    def __init__(self, sequences: list[Sequence], block_size: int) -> None:
        self.sequences, self._block_size = sequences, block_size
        self.rows_B = np.array([s.row for s in sequences], np.int32)
        self.positions_B = np.array([s.computed for s in sequences], np.int64)
        self.tokens_B = np.array([s.tokens[-1] for s in sequences], np.int64)

    @staticmethod
    def suits(sequence: Sequence) -> bool:
        """Not before its first token: with that the other samples of its request start."""
        return sequence.plain and sequence.decodes and sequence.generated > 0 and not sequence.drafts

    def at_block_start(self) -> list[Sequence]:
        """Those whose next entry is the first of a block."""
        places = (self.positions_B % self._block_size == 0).nonzero()[0]
        return [self.sequences[place] for place in places.tolist()]

    def take(self, drawn: Drawn) -> list[Sequence]:
        """Add what was drawn; those that it ended."""
        ended = []
        for sequence, token, logprob in zip(self.sequences, drawn.tokens, drawn.logprobs, strict=True):
            sequence.computed += 1
            if not sequence.stands(logprob):
                ended.append(sequence)
                continue
            tokens = sequence.tokens
            tokens.append(token)
            sequence.logprobs.append(logprob)
            if token in sequence.stops:
                sequence.finish_reason = "stop"
                ended.append(sequence)
            elif len(tokens) >= sequence.limit:
                sequence.finish_reason = "length"
                ended.append(sequence)
        self.positions_B += 1
        self.tokens_B = np.array(drawn.tokens, np.int64)
        return ended

    def drop_ended(self) -> None:
        stay_B = np.array([s.finish_reason is None for s in self.sequences])
        self.sequences = [s for s in self.sequences if s.finish_reason is None]
        self.rows_B, self.positions_B = self.rows_B[stay_B], self.positions_B[stay_B]
        self.tokens_B = self.tokens_B[stay_B]
