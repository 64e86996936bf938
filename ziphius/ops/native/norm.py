"""RMSNorm in one pass forward and one backward (`norm.c`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ziphius.ops.native.call import call, is_half

_CHUNK = 32  # rows of one partial sum of the weight's gradient, as in norm.c


class RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        x, stride = _rows(x)
        width = x.shape[-1]
        rows = x.numel() // width
        y = torch.empty(x.shape, dtype=dtype)
        rstd = torch.empty(rows, dtype=torch.float32)
        dtypes = is_half(x), is_half(weight), is_half(y)
        address = x.data_ptr(), stride, weight.data_ptr()
        threads = torch.get_num_threads()
        call("norm_forward", *address, y.data_ptr(), rstd.data_ptr(), rows, width, eps, threads, *dtypes)
        ctx.save_for_backward(x, weight, rstd)
        ctx.stride, ctx.dtypes = stride, dtypes
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, weight, rstd = ctx.saved_tensors
        grad = grad.contiguous()
        rows, width = rstd.numel(), x.shape[-1]
        grad_x, grad_weight = torch.empty(x.shape, dtype=x.dtype), torch.empty_like(weight)
        partial = torch.empty(-(-rows // _CHUNK) * (width + 15), dtype=torch.float32)
        tensors = weight, rstd, grad, grad_x, grad_weight, partial
        addresses = [tensor.data_ptr() for tensor in tensors]
        call("norm_backward", x.data_ptr(), ctx.stride, *addresses, rows, width, torch.get_num_threads(), *ctx.dtypes)
        return grad_x, grad_weight, None, None


def _rows(x: Tensor) -> tuple[Tensor, int]:
    """`x` as evenly spaced rows, and their distance in elements: a slice of wider rows needs no copy."""
    if x.is_contiguous():
        return x, x.shape[-1]
    evenly = all(x.stride(i) == x.stride(i + 1) * x.shape[i + 1] for i in range(x.ndim - 2))
    if x.stride(-1) == 1 and x.ndim > 1 and evenly:
        return x, x.stride(-2)
    return x.contiguous(), x.shape[-1]
