"""The gate's choice and its balance loss, each in one pass a way (`router.c`). Shapes as in `ops.router`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ziphius.ops.native.call import OUT_OF_RANGE, call, pointer

_SIGMOID, _NORMALISE, _BY_TWO_BEST = 1, 2, 4


class Route(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        bias: Tensor | None,
        top_k: int,
        groups: int,
        kept: int,
        sigmoid: bool,
        normalise: bool,
        factor: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        N, E = logits.shape
        logits = logits.contiguous()
        bias_E = None if bias is None else bias.float().contiguous()
        scores, weights = torch.empty_like(logits), logits.new_empty(N, top_k)
        indices = torch.empty(N, top_k, dtype=torch.int64)
        flags = _SIGMOID * sigmoid + _NORMALISE * normalise + _BY_TWO_BEST * (bias is not None)
        addresses = map(pointer, (logits, bias_E, scores, indices, weights))
        call("router_forward", *addresses, N, E, top_k, groups, kept if groups > 1 else 0, factor, flags)
        ctx.save_for_backward(scores, indices)
        ctx.factor, ctx.flags = factor, flags
        ctx.mark_non_differentiable(indices)
        ctx.set_materialize_grads(False)
        return scores, indices, weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_scores: Tensor | None, _: None, grad_weights: Tensor | None) -> tuple[Any, ...]:
        scores, indices = ctx.saved_tensors
        grad_weights = scores.new_zeros(indices.shape) if grad_weights is None else grad_weights.contiguous()
        grad_scores = None if grad_scores is None else grad_scores.contiguous()
        grad = torch.empty_like(scores)
        addresses = map(pointer, (scores, indices, grad_scores, grad_weights, grad))
        call("router_backward", *addresses, *scores.shape, indices.shape[1], ctx.factor, ctx.flags)
        return grad, *[None] * 7


class BalanceLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, indices: Tensor, shape: tuple[int, int], valid: Tensor | None) -> Tensor:
        scores, indices, (E, K) = scores.contiguous(), indices.contiguous(), (scores.shape[1], indices.shape[1])
        valid = None if valid is None else (valid != 0).contiguous()
        frequency, loss = scores.new_empty(shape[0], E), scores.new_empty(())
        addresses = map(pointer, (scores, indices, valid, frequency, loss))
        if call("balance_forward", *addresses, *shape, E, K) == OUT_OF_RANGE:
            raise IndexError(f"an expert index is not in 0…{E - 1}")
        ctx.save_for_backward(scores, valid, frequency)
        ctx.shape = shape
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        scores, valid, frequency = ctx.saved_tensors
        grad_scores = torch.empty_like(scores)
        addresses = map(pointer, (scores, valid, frequency, grad, grad_scores))
        call("balance_backward", *addresses, *ctx.shape, scores.shape[1])
        return grad_scores, None, None, None
