"""What the loop trains on: tokens with a weight each, and for reinforcement learning advantages and log-probabilities.

B rows, T time. Entry t of every field speaks of token t as the thing predicted (from the tokens before it).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ziphius.text.packing import Row


@dataclass
class Batch:
    """One micro-batch. `weights` is 0 where a token is not trained on; `segments` is −1 on padding."""

    tokens: Tensor  # int64 [B, T]
    weights: Tensor  # fp32 [B, T]
    segments: Tensor | None = None  # int32 [B, T]; None: one sample a row, no mask between packed ones
    positions: Tensor | None = None  # int64 [B, T]; None: 0…T−1
    valid: Tensor | None = None  # bool [B, T]; None: no padding
    advantages: Tensor | None = None  # fp32 [B, T]
    old_logprobs: Tensor | None = None  # fp32 [B, T], by the trainer before the first update on this batch
    sampler_logprobs: Tensor | None = None  # fp32 [B, T], by the sampler that wrote the tokens
    reference_logprobs: Tensor | None = None  # fp32 [B, T], by the reference policy
    normaliser: float | None = None  # what this batch adds to the divisor of the loss; None: the sum of its weights

    @property
    def norm(self) -> float:
        return float(self.weights.sum()) if self.normaliser is None else self.normaliser

    @property
    def token_count(self) -> int:
        """Tokens computed on, padding left out."""
        return self.tokens.numel() if self.valid is None else int(self.valid.sum())


def stack_rows(rows: Sequence[Row], masked: bool) -> Batch:
    """Rows of one length as a batch. `masked` keeps the samples packed into a row from seeing each other."""
    tokens, weights = (torch.from_numpy(np.stack([getattr(row, key) for row in rows])) for key in ("tokens", "weights"))
    segments = torch.from_numpy(np.stack([row.segments for row in rows]))
    valid = None if bool((segments >= 0).all()) else segments >= 0
    if not masked or int(segments.max()) == 0:
        return Batch(tokens, weights, valid=valid)
    positions = torch.from_numpy(np.stack([row.positions for row in rows]))
    return Batch(tokens, weights, segments, positions, valid)
