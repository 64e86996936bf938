"""What changes a row's logits before the draw: penalties, biases, tokens that may not come.

S rows of a draw, W vocabulary, R rows of running sequences.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ziphius.engine.sequence import Sequence
from ziphius.engine.settings import SamplingSettings

if TYPE_CHECKING:
    from ziphius.engine.sampling import Bound


class Shaper:
    """Counts the tokens of sequences with penalties, by row; the tables are made when the first of them comes."""

    def __init__(self, rows: int, vocab_size: int, device: torch.device) -> None:
        self.rows, self.vocab_size, self.device = rows, vocab_size, device
        self._answer_RW: np.ndarray | None = None  # how often each token stands in the answer
        self._prompt_RW: np.ndarray | None = None  # whether it stands in the prompt

    def seat(self, sequence: Sequence) -> None:
        """Count what a sequence that has got a row holds already."""
        s, row = sequence.request.settings, sequence.row
        if not _penalised(s):
            return
        if self._answer_RW is None or self._prompt_RW is None:
            self._answer_RW = np.zeros((self.rows, self.vocab_size), np.float32)
            self._prompt_RW = np.zeros((self.rows, self.vocab_size), bool)
        answer = sequence.tokens[sequence.prompt_length :]
        self._answer_RW[row] = np.bincount(answer, minlength=self.vocab_size) if answer else 0
        self._prompt_RW[row] = False
        self._prompt_RW[row, sequence.tokens[: sequence.prompt_length]] = True

    def count(self, sequence: Sequence, tokens: Seq[int]) -> None:
        """Note new tokens of an answer."""
        if self._answer_RW is not None and _penalised(sequence.request.settings):
            np.add.at(self._answer_RW[sequence.row], tokens, 1)

    def shape(self, logits_SW: Tensor, bound: Seq[Bound]) -> Tensor:
        """The logits as the settings of the rows in `bound` change them; the others as they are."""
        places = torch.tensor([b.place for b in bound], device=logits_SW.device)
        rows_BW = logits_SW[places].cpu().numpy()
        for row_W, b in zip(rows_BW, bound, strict=True):
            self._shape(row_W, b)
        return logits_SW.index_copy(0, places, torch.from_numpy(rows_BW).to(logits_SW.device))

    def _shape(self, row_W: np.ndarray, b: Bound) -> None:
        s, sequence = b.sequence.request.settings, b.sequence
        for token, bias in s.logit_bias.items():
            row_W[token] += bias
        if _penalised(s) and self._answer_RW is not None and self._prompt_RW is not None:
            count_W = self._answer_RW[sequence.row]
            if len(b.behind):
                count_W = count_W + np.bincount(b.behind, minlength=self.vocab_size)
            penalise(row_W, count_W, self._prompt_RW[sequence.row], s)
        if b.allowed is not None:
            row_W[~b.allowed] = -np.inf
        if sequence.generated + len(b.behind) < s.min_tokens:
            stops = list(sequence.stops)
            ends = row_W[stops]
            row_W[stops] = -np.inf
            if not np.isfinite(row_W).any():  # a finished form leaves nothing but the end
                row_W[stops] = ends


def penalise(row_W: np.ndarray, count_W: np.ndarray, prompt_W: np.ndarray, settings: SamplingSettings) -> None:
    """Lower, in place, the logits of tokens that the answer holds `count_W` times or the prompt holds.

    Presence and frequency penalties as OpenAI defines them; the repetition penalty divides what is positive and
    multiplies what is negative (Keskar et al. 2019, arXiv 1909.05858).
    """
    if settings.repetition_penalty != 1:
        seen_W = (count_W > 0) | prompt_W
        factor_W = np.where(row_W > 0, 1 / settings.repetition_penalty, settings.repetition_penalty)
        row_W *= np.where(seen_W, factor_W, 1.0).astype(np.float32)
    row_W -= settings.frequency_penalty * count_W + settings.presence_penalty * (count_W > 0)


def _penalised(settings: SamplingSettings) -> bool:
    return bool(settings.presence_penalty or settings.frequency_penalty) or settings.repetition_penalty != 1


def is_shaped(settings: SamplingSettings) -> bool:
    """Whether these settings change logits, at any place of the answer."""
    return _penalised(settings) or bool(settings.logit_bias) or settings.min_tokens > 0
