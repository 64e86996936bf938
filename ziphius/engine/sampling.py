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
from ziphius.engine.draw import cut, draw, host, likeliest, pick
from ziphius.engine.random import uniforms
from ziphius.engine.sequence import Sequence
from ziphius.engine.shaping import Shaper


@dataclass(slots=True)
class Drawn:
    """Tokens, their log-probabilities (see `request.Update`), and the likeliest alternatives where asked for."""

    tokens: list[int]
    logprobs: list[float]
    top_logprobs: list[list[tuple[int, float]] | None] | None = None


@dataclass(slots=True)
class Bound:
    """What holds at one row of a draw beside the settings: `behind` are drafts it stands behind.

    `forced` is the token that must come, `allowed` [W] those that may.
    """

    place: int  # of the row in the draw
    sequence: Sequence
    behind: Seq[int] = ()
    forced: int | None = None
    allowed: np.ndarray | None = None


class Sampler:
    """Holds the running sequences' settings by row, so that a step gathers them in one go."""

    def __init__(self, rows: int, vocab_size: int, device: torch.device) -> None:
        self.device = device
        self.temperature = np.ones(rows, np.float32)
        self.top_p = np.ones(rows, np.float32)
        self.min_p = np.zeros(rows, np.float32)
        self.top_k = np.zeros(rows, np.int64)
        self.keys = np.zeros(rows, np.uint64)
        self.tops = np.full(rows, -1)
        self.greedy = np.zeros(rows, bool)
        self.cuts = np.zeros(rows, bool)
        self.shaper = Shaper(rows, vocab_size, device)

    def seat(self, sequence: Sequence) -> None:
        """Take over the settings of a sequence that has got a row."""
        row, s = sequence.row, sequence.request.settings
        self.greedy[row] = s.temperature == 0
        self.temperature[row] = s.temperature or 1.0
        self.top_p[row], self.top_k[row], self.min_p[row] = s.top_p, s.top_k, s.min_p
        self.cuts[row] = s.temperature > 0 and (s.top_p < 1 or s.top_k > 0 or s.min_p > 0)
        self.keys[row] = sequence.key
        self.tops[row] = -1 if s.logprobs is None else s.logprobs
        self.shaper.seat(sequence)

    def draw(self, logits_SW: Tensor, rows_S: np.ndarray, places_S: np.ndarray, bound: Seq[Bound] = ()) -> Drawn:
        """A token for each row of fp32 `logits_SW`: for the sequence in `rows_S`, to stand at position `places_S`.

        Of the sequences whose settings bind more than temperature and cuts, every row must be in `bound`.
        """
        plain_S = self._plain(rows_S, [b.place for b in bound])
        if plain_S.all():
            return Drawn(*self._draw_plain(logits_SW, rows_S, places_S))
        drawn = self._draw_any(logits_SW, rows_S, places_S, bound)
        if plain_S.any():  # the same way as without the others, for the same bits
            at = plain_S.nonzero()[0]
            tokens, logprobs = self._draw_plain(logits_SW[torch.from_numpy(at)], rows_S[at], places_S[at])
            for place, token, logprob in zip(at.tolist(), tokens, logprobs, strict=True):
                drawn.tokens[place], drawn.logprobs[place] = token, logprob
        return drawn

    def guess(self, logits_SW: Tensor, rows_S: np.ndarray, places_S: np.ndarray) -> list[int]:
        """Tokens drawn as `draw` will draw at the same places, but for what is `bound`."""
        if self._plain(rows_S).all():
            return self._draw_plain(logits_SW, rows_S, places_S)[0]
        p_SW = torch.softmax(self._scaled(logits_SW, rows_S), dim=-1)
        return self._choose(p_SW, logits_SW, rows_S, places_S)[0].tolist()

    def _plain(self, rows_S: np.ndarray, bound: Seq[int] = ()) -> np.ndarray:
        """The rows that one operation serves whole: nothing but a temperature bears on them."""
        plain_S = ~self.cuts[rows_S] & (self.tops[rows_S] < 0)
        plain_S[list(bound)] = False
        return plain_S

    def _draw_plain(self, logits_SW: Tensor, rows_S: np.ndarray, places_S: np.ndarray) -> tuple[list[int], list[float]]:
        temperature_S = np.where(self.greedy[rows_S], np.float32(0), self.temperature[rows_S])
        u_S = uniforms(self.keys[rows_S], places_S)
        chosen_S, logprobs_S = ops.draw_tokens(logits_SW, self._vector(temperature_S), self._vector(u_S))
        return chosen_S.tolist(), logprobs_S.tolist()

    def _draw_any(self, logits_SW: Tensor, rows_S: np.ndarray, places_S: np.ndarray, bound: Seq[Bound]) -> Drawn:
        p_SW = torch.softmax(self._scaled(logits_SW, rows_S), dim=-1)
        tops = self._likeliest(p_SW, rows_S)
        if bound:
            own_SW, logits_SW = p_SW, self.shaper.shape(logits_SW, bound)
            p_SW = torch.softmax(self._scaled(logits_SW, rows_S), dim=-1)
        chosen_S, share_S = self._choose(p_SW, logits_SW, rows_S, places_S)
        if bound:
            for b in bound:
                if b.forced is not None:
                    chosen_S[b.place] = b.forced
            share_S = pick(own_SW, torch.from_numpy(chosen_S).to(self.device).unsqueeze(1))
        with np.errstate(divide="ignore"):
            return Drawn(chosen_S.tolist(), np.log(share_S).tolist(), tops)

    def _scaled(self, logits_SW: Tensor, rows_S: np.ndarray) -> Tensor:
        temperature_S = self.temperature[rows_S]
        if (temperature_S == 1).all():
            return logits_SW
        return logits_SW / self._column(temperature_S)

    def _choose(
        self, p_SW: Tensor, logits_SW: Tensor, rows_S: np.ndarray, places_S: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and their shares of `p_SW`, which is spent."""
        greedy_S = self.greedy[rows_S]
        any_greedy = greedy_S.any()
        if any_greedy:
            best_S = likeliest(logits_SW)
            best_share_S = pick(p_SW, torch.from_numpy(best_S).to(self.device).unsqueeze(1))
            if greedy_S.all():
                return best_S, best_share_S
        u_S = uniforms(self.keys[rows_S], places_S)
        if self.cuts[rows_S].any():
            kept_SW = cut(
                p_SW,
                self._vector(self.top_k[rows_S]),
                self._vector(self.top_p[rows_S]),
                self._vector(self.min_p[rows_S]),
            )
            chosen_S, _ = draw(kept_SW, u_S)
            share_S = pick(p_SW, torch.from_numpy(chosen_S).to(self.device).unsqueeze(1))
        else:
            chosen_S, share_S = draw(p_SW, u_S)
        if any_greedy:
            chosen_S, share_S = np.where(greedy_S, best_S, chosen_S), np.where(greedy_S, best_share_S, share_S)
        return chosen_S, share_S

    def _likeliest(self, p_SW: Tensor, rows_S: np.ndarray) -> list[list[tuple[int, float]] | None] | None:
        wanted_S = self.tops[rows_S]
        if (wanted_S < 0).all():
            return None
        share_SK, token_SK = p_SW.topk(max(1, int(wanted_S.max())), dim=-1)
        logprob_SK, token_SK = host(share_SK.log()).tolist(), host(token_SK).tolist()
        return [
            None if wanted < 0 else list(zip(tokens[:wanted], logprobs[:wanted], strict=True))
            for wanted, tokens, logprobs in zip(wanted_S.tolist(), token_SK, logprob_SK, strict=True)
        ]

    def _vector(self, x: np.ndarray) -> Tensor:
        return torch.from_numpy(x).to(self.device)

    def _column(self, x: np.ndarray) -> Tensor:
        return self._vector(x).unsqueeze(1)
