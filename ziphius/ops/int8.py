"""Matrices of 8-bit integers with one scale a row: half the bytes of BF16 where memory sets the speed.

M rows, K columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST = 127


@dataclass
class Int8Matrix:
    """values int8 [..., M, K] · scale fp32 [..., M]. Leading dimensions are those of stacked experts."""

    values: Tensor
    scale: Tensor

    @property
    def shape(self) -> torch.Size:
        return self.values.shape

    def dequantise(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return (self.values.float() * self.scale.unsqueeze(-1)).to(dtype)


def quantise_int8(weight: Tensor) -> Int8Matrix:
    """The nearest integers when each row's largest magnitude is 127; a row of zeros stays one."""
    weight = weight.float()
    scale = weight.abs().amax(-1) / LARGEST
    values = weight / scale.clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(-1)
    return Int8Matrix(values.round_().to(torch.int8), scale)
