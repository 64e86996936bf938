"""What changes a row's logits before the draw: penalties, biases, tokens that may not come.

B bound rows of a draw, S all of them, W vocabulary, R rows of running sequences.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ziphius.engine.course import Demand
from ziphius.engine.sequence import Sequence
from ziphius.engine.settings import SamplingSettings


@dataclass(slots=True)
class Bound:
    """What holds at one row of a draw beside the settings: `behind` are drafts it stands behind."""

    place: int  # of the row in the draw
    sequence: Sequence
    behind: Seq[int] = ()
    demand: Demand = field(default_factory=Demand)

    def settle(self, token: int) -> int:
        """The token that comes where `token` was drawn."""
        if self.demand.forced is not None:
            return self.demand.forced
        if self.demand.for_end is not None and token in self.sequence.stops:
            return self.demand.for_end
        return token


class Shaper:
    """Counts the tokens of sequences with penalties, by row; the tables are made when the first of them comes."""

    def __init__(self, rows: int, vocab_size: int, device: torch.device) -> None:
        self.rows, self.vocab_size, self.device = rows, vocab_size, device
        self._answer_RW: Tensor | None = None  # how often each token stands in the answer
        self._prompt_RW: Tensor | None = None  # whether it stands in the prompt

    def seat(self, sequence: Sequence) -> None:
        """Count what a sequence that has got a row holds already."""
        row, begin = sequence.row, sequence.prompt_length
        if not _is_penalised(sequence.request.settings):
            return
        if self._answer_RW is None or self._prompt_RW is None:
            self._answer_RW = torch.zeros(self.rows, self.vocab_size, device=self.device)
            self._prompt_RW = torch.zeros(self.rows, self.vocab_size, dtype=torch.bool, device=self.device)
        self._answer_RW[row] = self._counts(sequence.tokens[begin:])
        self._prompt_RW[row] = self._counts(sequence.tokens[:begin]) > 0

    def count(self, sequence: Sequence, tokens: Seq[int]) -> None:
        """Note new tokens of an answer."""
        if self._answer_RW is not None and _is_penalised(sequence.request.settings):
            for token in tokens:
                self._answer_RW[sequence.row, token] += 1

    def shape(self, logits_SW: Tensor, bound: Seq[Bound]) -> Tensor:
        """The logits as settings and constraints change them at the rows in `bound`; the others as they are."""
        bound = [b for b in bound if _binds(b.demand) or is_shaped(b.sequence.request.settings)]
        if not bound:
            return logits_SW
        places_B = torch.tensor([b.place for b in bound], device=self.device)
        logits_BW = logits_SW[places_B]
        for row_W, b in zip(logits_BW, bound, strict=True):
            bias = b.sequence.request.settings.logit_bias
            if bias:
                row_W[list(bias)] += torch.tensor(list(bias.values()), device=self.device)
        self._penalise(logits_BW, bound)
        for row_W, b in zip(logits_BW, bound, strict=True):
            self._forbid(row_W, b)
        return logits_SW.index_copy(0, places_B, logits_BW)

    def _penalise(self, logits_BW: Tensor, bound: Seq[Bound]) -> None:
        at = [place for place, b in enumerate(bound) if _is_penalised(b.sequence.request.settings)]
        if not at or self._answer_RW is None or self._prompt_RW is None:
            return
        rows = [bound[place].sequence.row for place in at]
        counts_BW = self._answer_RW[rows]
        for counts_W, place in zip(counts_BW, at, strict=True):
            for token in bound[place].behind:
                counts_W[token] += 1
        given = [bound[place].sequence.request.settings for place in at]
        penalties = [(s.presence_penalty, s.frequency_penalty, s.repetition_penalty) for s in given]
        presence_B, frequency_B, repetition_B = torch.tensor(penalties, device=self.device).unbind(-1)
        logits_BW[at] = penalised(
            logits_BW[at], counts_BW, self._prompt_RW[rows], presence_B, frequency_B, repetition_B
        )

    def _forbid(self, row_W: Tensor, b: Bound) -> None:
        sequence = b.sequence
        if b.demand.allowed is not None:
            row_W.masked_fill_(~torch.from_numpy(b.demand.allowed).to(self.device), -math.inf)
        too_early = sequence.generated + len(b.behind) < sequence.request.settings.min_tokens
        if too_early or not b.demand.may_end:
            stops = list(sequence.stops)
            ends = row_W[stops]
            row_W[stops] = -math.inf
            if not row_W.isfinite().any():  # a finished form leaves nothing but the end
                row_W[stops] = ends

    def _counts(self, tokens: Seq[int]) -> Tensor:
        return torch.tensor(tokens, dtype=torch.long, device=self.device).bincount(minlength=self.vocab_size)


def penalised(
    logits_BW: Tensor,
    count_BW: Tensor,
    prompt_BW: Tensor,
    presence_B: Tensor,
    frequency_B: Tensor,
    repetition_B: Tensor,
) -> Tensor:
    """The logits, lowered where the answer holds a token `count_BW` times or the prompt (bool) holds it.

    Presence and frequency penalties as OpenAI defines them; the repetition penalty divides what is positive and
    multiplies what is negative (Keskar et al. 2019, arXiv 1909.05858).
    """
    said_BW = count_BW > 0
    repetition_B1 = repetition_B.unsqueeze(1)
    repeated_BW = torch.where(logits_BW > 0, logits_BW / repetition_B1, logits_BW * repetition_B1)
    lowered_BW = torch.where(said_BW | prompt_BW, repeated_BW, logits_BW)
    return lowered_BW - frequency_B.unsqueeze(1) * count_BW - presence_B.unsqueeze(1) * said_BW


def _binds(demand: Demand) -> bool:
    return demand.allowed is not None or not demand.may_end


def _is_penalised(settings: SamplingSettings) -> bool:
    return bool(settings.presence_penalty or settings.frequency_penalty) or settings.repetition_penalty != 1


def is_shaped(settings: SamplingSettings) -> bool:
    """Whether these settings change logits, at any place of the answer."""
    return _is_penalised(settings) or bool(settings.logit_bias) or settings.min_tokens > 0
