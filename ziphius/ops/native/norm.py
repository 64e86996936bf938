"""RMSNorm, alone or after a residual sum, in one pass forward and one backward (`norm.c`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ziphius.ops.native.call import call, is_half, pointer

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


class AddRmsNorm(torch.autograd.Function):
    """x fp32, delta fp32 or bf16, of one shape."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, delta: Tensor, weight: Tensor, eps: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        x, delta = x.contiguous(), delta.contiguous()
        width = x.shape[-1]
        rows = x.numel() // width
        total, y = torch.empty_like(x), torch.empty(x.shape, dtype=dtype)
        rstd = torch.empty(rows, dtype=torch.float32)
        dtypes = is_half(delta), is_half(weight), is_half(y)
        addresses = [tensor.data_ptr() for tensor in (x, delta, weight, total, y, rstd)]
        call("norm_add_forward", *addresses, rows, width, eps, torch.get_num_threads(), *dtypes)
        ctx.save_for_backward(total, weight, rstd)
        ctx.dtypes, ctx.delta_dtype = dtypes, delta.dtype
        ctx.set_materialize_grads(False)
        return total, y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor | None, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        total, weight, rstd = ctx.saved_tensors
        if grad is None:
            return grad_total, None if grad_total is None else grad_total.to(ctx.delta_dtype), None, None, None
        grad = grad.contiguous()
        grad_total = None if grad_total is None else grad_total.contiguous()
        rows, width = rstd.numel(), total.shape[-1]
        grad_x, grad_delta = torch.empty_like(total), torch.empty(total.shape, dtype=ctx.delta_dtype)
        grad_weight = torch.empty_like(weight)
        partial = torch.empty(-(-rows // _CHUNK) * (width + 15), dtype=torch.float32)
        tensors = total, weight, rstd, grad_total, grad, grad_x, grad_delta, grad_weight, partial
        call("norm_add_backward", *map(pointer, tensors), rows, width, torch.get_num_threads(), *ctx.dtypes)
        return grad_x, grad_delta, grad_weight, None, None


def _rows(x: Tensor) -> tuple[Tensor, int]:
    """`x` as evenly spaced rows, and their distance in elements: a slice of wider rows needs no copy."""
    if x.is_contiguous():
        return x, x.shape[-1]
    evenly = all(x.stride(i) == x.stride(i + 1) * x.shape[i + 1] for i in range(x.ndim - 2))
    if x.stride(-1) == 1 and x.ndim > 1 and evenly:
        return x, x.stride(-2)
    return x.contiguous(), x.shape[-1]
