"""A matrix in any of the number formats that a network may be sampled in."""

from __future__ import annotations

import torch
from torch import Tensor

from ziphius.ops.fp8 import Fp8Matrix
from ziphius.ops.int8 import Int8Matrix

Matrix = Tensor | Int8Matrix | Fp8Matrix


def tensors_of(matrix: Matrix) -> list[Tensor]:
    """What `matrix` is made of: itself, or its values and their scales."""
    return [matrix] if isinstance(matrix, Tensor) else [matrix.values, matrix.scale]


def dense(matrix: Matrix, dtype: torch.dtype) -> Tensor:
    """Its numbers in `dtype`; without a copy where it lies so."""
    return matrix.to(dtype) if isinstance(matrix, Tensor) else matrix.dequantise(dtype)
