"""Grouped-query attention in one kernel forward and one backward (`gqa.c`). Shapes as in `ops.grouped`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ziphius.ops.native.call import call, is_half, pointer


class GroupedAttention(torch.autograd.Function):
    """Keeps the inputs, the result and two floats a row; the weights are computed again in the backward."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, scale: float, segments: Tensor | None
    ) -> Tensor:
        B, T, H, K = q.shape
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        cos, sin = cos.float().contiguous(), sin.float().contiguous()
        segments = None if segments is None else segments.to(torch.int32).contiguous()
        out, softmax = torch.empty_like(q), torch.empty(B, H, T, 2, dtype=torch.float32)
        ctx.last = B, T, H, k.shape[2], K, cos.shape[0], scale, is_half(q)
        tensors = q, k, v, cos, sin, segments, out, softmax
        call("gqa_forward", *map(pointer, tensors), *ctx.last, torch.get_num_threads())
        ctx.save_for_backward(q, k, v, cos, sin, segments, out, softmax)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *others = ctx.saved_tensors
        grads = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        tensors = q, k, v, *others, grad.contiguous(), *grads
        call("gqa_backward", *map(pointer, tensors), *ctx.last, torch.get_num_threads())
        return *grads, None, None, None, None
