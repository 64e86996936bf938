"""Rotary positions (Su et al. 2021, arXiv 2104.09864)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ziphius.ops.backend import leaves_formula


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = True) -> Tensor:
    """Rotate the pairs of `x` [..., R] by cos, sin [..., R/2] (broadcast over x's leading axes).

    The pairs are (x0,x1), (x2,x3), … where they are `interleaved` (DeepSeek), else (x0,xR/2), (x1,xR/2+1), … (Llama,
    Qwen). The result lists all first elements, then all second ones: the same permutation for queries and keys leaves
    their dot product as it is, and saves interleaving again.
    """
    if leaves_formula():
        return apply_rope_reference(x, cos, sin, interleaved)
    return _Rope.apply(x, cos, sin, interleaved)


def apply_rope_reference(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = True) -> Tensor:
    first, second = (half.float() for half in _halves(x, interleaved))
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def _halves(x: Tensor, interleaved: bool) -> tuple[Tensor, Tensor]:
    """Views of the first and the second elements of the pairs."""
    if interleaved:
        return x[..., 0::2], x[..., 1::2]
    first, second = x.chunk(2, dim=-1)
    return first, second


class _Rope(torch.autograd.Function):
    """The rotation and its inverse, each written straight into the result."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
        cos, sin = cos.to(x.dtype), sin.to(x.dtype)
        ctx.save_for_backward(cos, sin)
        ctx.interleaved = interleaved
        first, second = _halves(x, interleaved)
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        out_first, out_second = out.chunk(2, dim=-1)
        torch.mul(first, cos, out=out_first).addcmul_(second, sin, value=-1)
        torch.mul(second, cos, out=out_second).addcmul_(first, sin)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        first, second = grads[0].chunk(2, dim=-1)
        grad = torch.empty(grads[0].shape, dtype=grads[0].dtype, device=grads[0].device)
        into_first, into_second = _halves(grad, ctx.interleaved)
        torch.mul(first, cos, out=into_first).addcmul_(second, sin)
        torch.mul(second, cos, out=into_second).addcmul_(first, sin, value=-1)
        return grad, None, None, None
