"""The routed experts: every token goes to its K experts, none is dropped.

N tokens of a flattened batch, K experts per token, E experts, D model, F expert hidden.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ziphius.ops.backend import compute_dtype, current_backend
from ziphius.ops.swiglu import swiglu_grad, swiglu_reference


def grouped_experts(
    x_ND: Tensor, indices_NK: Tensor, weights_NK: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor
) -> Tensor:
    """Σ_k weight_k · down_e(swiglu(gate_up_e(x))) over the K experts e chosen for each token -> [N, D].

    Source: V3 §2.1.2, equations 12–13. Deterministic: tokens are gathered and summed in a fixed order.
    """
    dtype = compute_dtype(x_ND)
    args = x_ND.to(dtype), indices_NK, weights_NK.to(dtype), gate_up_E2FD.to(dtype), down_EDF.to(dtype)
    if current_backend() == "reference":
        return grouped_experts_reference(*args)
    return _GroupedExperts.apply(*args)


def grouped_experts_reference(
    x_ND: Tensor, indices_NK: Tensor, weights_NK: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor
) -> Tensor:
    out = torch.zeros_like(x_ND)
    for expert in range(gate_up_E2FD.shape[0]):
        token, slot = torch.where(indices_NK == expert)
        hidden = swiglu_reference(F.linear(x_ND[token], gate_up_E2FD[expert]))
        out = out.index_add(0, token, F.linear(hidden, down_EDF[expert]) * weights_NK[token, slot, None])
    return out


class _GroupedExperts(torch.autograd.Function):
    """Sort the token–expert pairs by expert, one product per expert, and gather back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, indices: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        tokens, per_token = indices.shape
        flat = indices.reshape(-1)
        order = torch.argsort(flat, stable=True)
        place = torch.empty_like(order)
        place[order] = torch.arange(order.numel(), device=order.device)
        counts = torch.bincount(flat, minlength=gate_up.shape[0]).tolist()

        x_sorted = x[order // per_token]
        w_sorted = weights.reshape(-1)[order].unsqueeze(1)
        pre = _per_expert(x_sorted, gate_up.transpose(1, 2), counts)
        hidden = swiglu_reference(pre)
        y = _per_expert(hidden * w_sorted, down.transpose(1, 2), counts)
        ctx.save_for_backward(x_sorted, w_sorted, pre, hidden, gate_up, down, order, place)
        ctx.counts, ctx.shape = counts, (tokens, per_token)
        return y[place].view(tokens, per_token, -1).sum(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, Tensor, Tensor, Tensor]:
        x_sorted, w_sorted, pre, hidden, gate_up, down, order, place = ctx.saved_tensors
        counts, (tokens, per_token) = ctx.counts, ctx.shape
        grad_y = grads[0][order // per_token]
        grad_scaled = _per_expert(grad_y, down, counts)
        grad_down = _outer_per_expert(grad_y, hidden * w_sorted, counts)
        grad_weights = torch.linalg.vecdot(grad_scaled, hidden)[place].view(tokens, per_token)
        grad_pre = swiglu_grad(pre, grad_scaled.mul_(w_sorted))
        grad_gate_up = _outer_per_expert(grad_pre, x_sorted, counts)
        grad_x = _per_expert(grad_pre, gate_up, counts)[place].view(tokens, per_token, -1).sum(1)
        return grad_x, None, grad_weights, grad_gate_up, grad_down


def _per_expert(rows: Tensor, matrices: Tensor, counts: list[int]) -> Tensor:
    """rows [M, A] sorted by expert, matrices [E, A, B] -> [M, B]."""
    out = rows.new_empty(rows.shape[0], matrices.shape[2])
    for matrix, part, target in zip(matrices, rows.split(counts), out.split(counts), strict=True):
        torch.mm(part, matrix, out=target)
    return out


def _outer_per_expert(left: Tensor, right: Tensor, counts: list[int]) -> Tensor:
    """Σ over the rows of each expert of left ⊗ right: [M, A], [M, B] -> [E, A, B]."""
    out = left.new_empty(len(counts), left.shape[1], right.shape[1])
    for target, a, b in zip(out, left.split(counts), right.split(counts), strict=True):
        torch.mm(a.t(), b, out=target)
    return out
