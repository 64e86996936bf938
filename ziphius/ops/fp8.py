"""Matrices of e4m3 with one scale a block of 128 × 128 (V3 §3.3.2), as the published V3 and R1 folders have them.

M rows, K columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 128
LARGEST = 448.0


@dataclass
class Fp8Matrix:
    """values float8_e4m3fn [M, K] · scale fp32 [⌈M/128⌉, ⌈K/128⌉] of their blocks."""

    values: Tensor
    scale: Tensor

    @property
    def shape(self) -> torch.Size:
        return self.values.shape

    def dequantise(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return spread(self.scale, self.values.shape, (BLOCK, BLOCK)).mul_(self.values.float()).to(dtype)


def quantise_fp8(weight_MK: Tensor) -> Fp8Matrix:
    """The nearest e4m3 numbers when each block's largest magnitude is 448; a block of zeros stays one."""
    weight_MK = weight_MK.float()
    M, K = weight_MK.shape
    rows, columns = -(-M // BLOCK), -(-K // BLOCK)
    whole = weight_MK.new_zeros(rows * BLOCK, columns * BLOCK)
    whole[:M, :K] = weight_MK
    blocks = whole.view(rows, BLOCK, columns, BLOCK)
    scale = blocks.abs().amax((1, 3)) / LARGEST
    blocks /= scale.clamp(min=torch.finfo(torch.float32).tiny)[:, None, :, None]
    # What rounds the scale down would put the largest just above 448, which e4m3 has no number for.
    values = whole[:M, :K].clamp_(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
    return Fp8Matrix(values, scale)


def spread(scale: Tensor, shape: tuple[int, ...], block: tuple[int, int]) -> Tensor:
    """The scale of each element of a matrix of `shape`, fp32 [M, K], from those of its blocks."""
    rows, columns = shape
    return scale.float().repeat_interleave(block[0], 0)[:rows].repeat_interleave(block[1], 1)[:, :columns].contiguous()
