"""RMSNorm (Zhang & Sennrich 2019, arXiv 1910.07467), statistics in fp32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ziphius.ops.backend import backend_for, compute_dtype, leaves_formula
from ziphius.ops.native import norm as native


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Normalise the last axis of `x` [..., D] to unit mean square and scale by `weight` [D].

    Returns x's shape in the compute dtype (autocast's where it is on).
    """
    dtype = compute_dtype(x)
    if leaves_formula():
        return rms_norm_reference(x, weight, eps).to(dtype)
    if backend_for(x, weight) == "native":
        return native.RmsNorm.apply(x, weight, eps, dtype)
    return _RmsNorm.apply(x, weight, eps, dtype)


def add_rms_norm(x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x + delta and its RMSNorm: what stands between two parts of a block. All [..., D], the sum in x's dtype."""
    if x.dtype == torch.float32 and x.shape == delta.shape and backend_for(x, delta, weight) == "native":
        return native.AddRmsNorm.apply(x, delta, weight, eps, compute_dtype(x))
    total = x + delta
    return total, rms_norm(total, weight, eps)


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    xf = x.float()
    return (weight * (xf * torch.rsqrt(xf.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)).to(x.dtype)


class _RmsNorm(torch.autograd.Function):
    """Few passes over the data: autograd's own backward of the reference takes eleven, this one six."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide).square_()
        rstd = square.div_(x.shape[-1]).add_(eps).rsqrt_()
        normed = (x * rstd).to(dtype)
        ctx.save_for_backward(normed, weight, rstd)
        ctx.input_dtype = x.dtype
        return normed * weight.to(dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (grad,) = grads
        normed, weight, rstd = ctx.saved_tensors
        width = normed.shape[-1]
        product = grad * normed
        grad_weight = product.view(-1, width).sum(0, dtype=torch.float32)
        projection = (product @ weight.to(product.dtype)).unsqueeze(-1).float().div_(width)
        grad_x = torch.addcmul(grad * weight, normed, projection, value=-1).mul_(rstd)
        return grad_x.to(ctx.input_dtype), grad_weight.to(weight.dtype), None, None
