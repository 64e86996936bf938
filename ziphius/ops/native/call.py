"""Calling a kernel on tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from ziphius.ops.native.build import library

OUT_OF_MEMORY, OUT_OF_RANGE = -1, -2  # what a kernel returns instead of 0


def pointer(x: Tensor | None) -> int | None:
    """Address of a contiguous CPU tensor's first element, null for None. The caller keeps the tensor alive."""
    return None if x is None else x.data_ptr()


def is_half(x: Tensor) -> bool:
    """bf16, where the kernels know fp32 besides."""
    return x.dtype == torch.bfloat16


def call(name: str, *args: object) -> int:
    """Run kernel `name`. OUT_OF_RANGE is the caller's to explain."""
    kernels = library()
    assert kernels is not None, "a native operation was called without its library"
    result: int = getattr(kernels, name)(*args)
    if result == OUT_OF_MEMORY:
        raise MemoryError(f"{name} could not allocate its scratch buffers")
    return result
