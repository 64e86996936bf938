"""The two modules everything is made of."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ziphius import ops


class Linear(nn.Linear):
    """A matrix, weight [out, in], mostly without a bias."""

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__(in_features, out_features, bias)


class RMSNorm(nn.Module):
    """`ops.rms_norm` with its weight [D]."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return ops.rms_norm(x, self.weight, self.eps)

    def after(self, x: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        """x + delta and its norm."""
        return ops.add_rms_norm(x, delta, self.weight, self.eps)
