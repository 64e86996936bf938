"""Rotary positions (Su et al. 2021, arXiv 2104.09864) on interleaved pairs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ziphius.ops.backend import current_backend


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (x0,x1), (x2,x3), … of `x` [..., R] by cos, sin [..., R/2] (broadcast over x's leading axes).

    The result lists all first elements, then all second ones: the same permutation for queries and keys leaves
    their dot product as it is, and saves interleaving again.
    """
    if current_backend() == "reference":
        return apply_rope_reference(x, cos, sin)
    return _Rope.apply(x, cos, sin)


def apply_rope_reference(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x[..., 0::2].float(), x[..., 1::2].float()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


class _Rope(torch.autograd.Function):
    """The rotation and its inverse, each written straight into the result."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        cos, sin = cos.to(x.dtype), sin.to(x.dtype)
        ctx.save_for_backward(cos, sin)
        first, second = x[..., 0::2], x[..., 1::2]
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        out_first, out_second = out.chunk(2, dim=-1)
        torch.mul(first, cos, out=out_first).addcmul_(second, sin, value=-1)
        torch.mul(second, cos, out=out_second).addcmul_(first, sin)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        first, second = grads[0].chunk(2, dim=-1)
        grad = torch.empty(grads[0].shape, dtype=grads[0].dtype, device=grads[0].device)
        torch.mul(first, cos, out=grad[..., 0::2]).addcmul_(second, sin)
        torch.mul(second, cos, out=grad[..., 1::2]).addcmul_(first, sin, value=-1)
        return grad, None, None
