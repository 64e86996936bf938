"""Latent attention in one kernel forward and one backward (`attention.c`). Shapes as in `ops.attention`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ziphius.ops.native.call import call, is_half, pointer


class LatentAttention(torch.autograd.Function):
    """Keeps the inputs, the result and two floats a row; the weights are computed again in the backward."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, kv: Tensor, k_rope: Tensor, cos: Tensor, sin: Tensor, scale: float, segments: Tensor | None
    ) -> Tensor:
        B, T, H, K = q.shape
        R = k_rope.shape[-1]
        sizes = B, T, H, K - R, R, kv.shape[-1] - K + R, cos.shape[0]
        q, kv, k_rope = q.contiguous(), kv.contiguous(), k_rope.contiguous()
        cos, sin = cos.float().contiguous(), sin.float().contiguous()
        segments = None if segments is None else segments.to(torch.int32).contiguous()
        out = q.new_empty(B, T, H, sizes[5])
        softmax = torch.empty(B, H, T, 2, dtype=torch.float32)
        work = torch.empty((2 * sizes[6] + B) * T * R, dtype=torch.float32)
        inputs = [pointer(x) for x in (q, kv, k_rope, cos, sin, segments)]
        last = scale, is_half(q), torch.get_num_threads()
        call("attention_forward", *inputs, *map(pointer, (work, out, softmax)), *sizes, *last)
        ctx.save_for_backward(q, kv, k_rope, cos, sin, segments, out, softmax)
        ctx.sizes, ctx.scale = sizes, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, kv, k_rope, cos, sin, segments, out, softmax = ctx.saved_tensors
        B, T, H, _, R, _, tables = ctx.sizes
        grad = grad.contiguous()
        grads = torch.empty_like(q), torch.empty_like(kv), torch.empty_like(k_rope)
        work = torch.empty((2 * tables + B + B * H) * T * R, dtype=torch.float32)
        inputs = [pointer(x) for x in (q, kv, k_rope, cos, sin, segments)]
        last = ctx.scale, is_half(q), torch.get_num_threads()
        call("attention_backward", *inputs, *map(pointer, (work, out, softmax, grad, *grads)), *ctx.sizes, *last)
        return *grads, None, None, None, None
