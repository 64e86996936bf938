"""From logits to tokens for a batch of samples, each with its own settings.

S rows of a draw, W vocabulary, R rows of running sequences.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ziphius import ops
from ziphius.engine.random import uniforms
from ziphius.engine.sequence import Sequence
from ziphius.engine.shaping import Bound, Shaper
from ziphius.engine.tops import Tops
from ziphius.ops.cut import Cuts

_COLDEST = 1e-5  # temperatures below are greedy: the shares of all but the likeliest vanish, and so may its own


@dataclass(slots=True)
class Drawn:
    """Tokens, their log-probabilities (see `request.Update`), and the likeliest alternatives where asked for."""

    tokens: list[int]
    logprobs: list[float]
    top_logprobs: list[Tops | None] | None = None


class Sampler:
    """Holds the running sequences' settings by row, so that a step gathers them in one go."""

    def __init__(self, rows: int, vocab_size: int, device: torch.device) -> None:
        self.device = device
        self.temperature = np.ones(rows, np.float32)  # 0: the likeliest token
        self.top_p = np.ones(rows, np.float32)
        self.min_p = np.zeros(rows, np.float32)
        self.top_k = np.zeros(rows, np.int64)
        self.keys = np.zeros(rows, np.uint64)
        self.tops = np.full(rows, -1)
        self.cuts = np.zeros(rows, bool)
        self.shaper = Shaper(rows, vocab_size, device)

    def seat(self, sequence: Sequence) -> None:
        """Take over the settings of a sequence that has got a row."""
        row, s = sequence.row, sequence.request.settings
        self.temperature[row] = s.temperature if s.temperature >= _COLDEST else 0.0
        self.top_p[row], self.top_k[row], self.min_p[row] = s.top_p, s.top_k, s.min_p
        self.cuts[row] = self.temperature[row] > 0 and (s.top_p < 1 or s.top_k > 0 or s.min_p > 0)
        self.keys[row] = sequence.key
        self.tops[row] = -1 if s.logprobs is None else s.logprobs
        self.shaper.seat(sequence)

    def draw(self, logits_SW: Tensor, rows_S: np.ndarray, places_S: np.ndarray, bound: Seq[Bound] = ()) -> Drawn:
        """A token for each row of fp32 `logits_SW`: for the sequence in `rows_S`, to stand at position `places_S`.

        Rows on which more bears than their sequence's temperature and cuts must be in `bound`. A row's result is its
        own, whatever is drawn beside it.
        """
        shaped_SW = self.shaper.shape(logits_SW, bound)
        tokens, logprobs = self._draw(shaped_SW, rows_S, places_S)
        for b in bound:
            tokens[b.place] = b.settle(tokens[b.place])
        again_S = self.tops[rows_S] >= 0
        again_S[[b.place for b in bound]] = True
        if not again_S.any():
            return Drawn(tokens, logprobs)
        return self._told(logits_SW, rows_S, again_S.nonzero()[0], tokens, logprobs)

    def guess(self, logits_SW: Tensor, rows_S: np.ndarray, places_S: np.ndarray) -> list[int]:
        """Tokens drawn as `draw` will draw at the same places, but for what is `bound`."""
        return self._draw(logits_SW, rows_S, places_S)[0]

    def _draw(self, logits_SW: Tensor, rows_S: np.ndarray, places_S: np.ndarray) -> tuple[list[int], list[float]]:
        cuts = None
        if self.cuts[rows_S].any():
            cuts = Cuts(*(self._vector(x[rows_S]) for x in (self.top_k, self.top_p, self.min_p)))
        temperature_S, u_S = self._vector(self.temperature[rows_S]), self._vector(uniforms(self.keys[rows_S], places_S))
        tokens_S, logprobs_S = ops.draw_tokens(logits_SW, temperature_S, u_S, cuts)
        return tokens_S.tolist(), logprobs_S.tolist()

    def _told(
        self, logits_SW: Tensor, rows_S: np.ndarray, at: np.ndarray, tokens: list[int], logprobs: list[float]
    ) -> Drawn:
        """What was drawn, its rows `at` with what the network itself says of them."""
        temperature = self.temperature[rows_S[at]]
        own_SW = logits_SW[self._vector(at)]
        own_SW /= self._vector(np.where(temperature > 0, temperature, np.float32(1))).unsqueeze(1)
        own_SW = torch.log_softmax(own_SW, dim=-1)
        places = at.tolist()
        chosen = torch.tensor([[tokens[place]] for place in places], device=self.device)
        for place, logprob in zip(places, own_SW.gather(1, chosen).squeeze(1).tolist(), strict=True):
            logprobs[place] = logprob
        wanted = self.tops[rows_S[at]].tolist()
        if max(wanted) < 0:
            return Drawn(tokens, logprobs)
        tops: list[Tops | None] = [None] * len(tokens)
        best = own_SW.topk(min(max(1, *wanted), own_SW.shape[1]), dim=-1)
        for place, many, ids, values in zip(places, wanted, best.indices.tolist(), best.values.tolist(), strict=True):
            if many >= 0:
                tops[place] = Tops(ids[:many], values[:many])
        return Drawn(tokens, logprobs, tops)

    def _vector(self, x: np.ndarray) -> Tensor:
        return torch.from_numpy(x).to(self.device)
