"""Runs an operation on every backend, forward and backward, and compares with the reference."""

from __future__ import annotations

from collections.abc import Callable

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from ziphius import ops
from ziphius.model.config import CacheLayout

FASTER = ["torch", "auto"]  # auto takes native kernels where there are some

few = settings(max_examples=25, deadline=None, derandomize=True)
seeds = st.integers(0, 2**16)
sizes = st.integers(1, 9)

# relative to the largest entry: bf16 keeps eight bits, and both sides round more than once
_TOLERANCE = {torch.float64: 1e-5, torch.float32: 2e-5, torch.bfloat16: 4e-2}


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def agree(operation: Callable[..., Tensor], *inputs: Tensor, autocast: bool = False) -> None:
    """Assert that every backend gives the reference's result and gradient of every floating input."""
    expected = _run("reference", operation, inputs, autocast)
    for name in FASTER:
        for got, reference in zip(_run(name, operation, inputs, autocast), expected, strict=True):
            assert got.dtype == reference.dtype
            assert got.shape == reference.shape
            close(got, reference, torch.bfloat16 if autocast else None)


def _run(name: str, operation: Callable[..., Tensor], inputs: tuple[Tensor, ...], autocast: bool) -> tuple[Tensor, ...]:
    leaves = [x.clone().requires_grad_() if x.is_floating_point() else x for x in inputs]
    with ops.backend(name), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = operation(*leaves)
        upstream = normal(7, *out.shape, dtype=out.dtype)
        grads = torch.autograd.grad(out, [x for x in leaves if x.requires_grad], upstream)
    return out.detach(), *grads


def close(got: Tensor, expected: Tensor, dtype: torch.dtype | None = None) -> None:
    if expected.numel():
        scale = expected.double().abs().max().clamp(min=0.1)
        error = (got.double() - expected.double()).abs().max() / scale
        assert error <= _TOLERANCE[dtype or expected.dtype], f"off by {error:.2e} of the largest entry"


def latent(rank: int, rope: int = 0) -> CacheLayout:
    """Entries of one head whose value is the front of its key."""
    return CacheLayout(1, rank + rope, rank, 0)


def shared(heads: int, dim: int) -> CacheLayout:
    """Entries of `heads` keys and as many values."""
    return CacheLayout(heads, dim, dim, heads * dim)
