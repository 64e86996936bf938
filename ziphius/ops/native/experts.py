"""The routed experts: torch's batched products with C kernels around them (`experts.c`, `swiglu.c`).

N tokens, K experts per token, E experts, C rows per expert (its capacity), D model, F expert hidden.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ziphius.ops.native.call import OUT_OF_RANGE, call, is_half


class GroupedExperts(torch.autograd.Function):
    """As the torch path: every expert gets C rows, those beyond its load are zero. `weights` is fp32."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, indices: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, step: int
    ) -> Tensor:
        x, weights = x.contiguous(), weights.contiguous()
        E, F, K = gate_up.shape[0], down.shape[2], indices.shape[1]
        threads = torch.get_num_threads()
        place, slots = _lay_out(indices, E, step)
        x_ECD = _gather(x, slots, K, threads).view(E, -1, x.shape[1])
        pre = torch.bmm(x_ECD, gate_up.transpose(1, 2))
        hidden = pre.new_empty(E, x_ECD.shape[1], F)
        addresses = pre.data_ptr(), slots.data_ptr(), weights.data_ptr(), hidden.data_ptr()
        call("swiglu_forward", *addresses, slots.numel(), F, threads, is_half(pre))
        y = torch.bmm(hidden, down.transpose(1, 2))
        ctx.save_for_backward(x_ECD, weights, pre, gate_up, down, place, slots)
        return _sum(y, place, K, threads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_ECD, weights, pre, gate_up, down, place, slots = ctx.saved_tensors
        K, F = weights.shape[1], down.shape[2]
        threads = torch.get_num_threads()
        grad_y = _gather(grad.contiguous(), slots, K, threads).view_as(x_ECD)
        grad_hidden = torch.bmm(grad_y, down)
        hidden, grad_pre, grad_weights = (torch.empty_like(like) for like in (grad_hidden, pre, weights))
        tensors = pre, slots, weights, grad_hidden, grad_pre, hidden, grad_weights
        addresses = [tensor.data_ptr() for tensor in tensors]
        call("swiglu_backward", *addresses, slots.numel(), F, threads, is_half(pre))
        # Frozen experts cost neither the memory of their gradients nor the products.
        grad_down = torch.bmm(grad_y.transpose(1, 2), hidden) if ctx.needs_input_grad[4] else None
        grad_gate_up = torch.bmm(grad_pre.transpose(1, 2), x_ECD) if ctx.needs_input_grad[3] else None
        grad_x = _sum(torch.bmm(grad_pre, gate_up), place, K, threads)
        return grad_x, None, grad_weights, grad_gate_up, grad_down, None


def _lay_out(indices_NK: Tensor, experts: int, step: int) -> tuple[Tensor, Tensor]:
    """Row of each slot [N·K] and slot of each row [E·C], int32."""
    indices_NK = indices_NK.contiguous()
    count = indices_NK.numel()
    room = experts * (-(-count // step) * step)
    memory = torch.empty(count + room, dtype=torch.int32)
    place, slots = memory[:count], memory[count:]
    counts = torch.empty(experts, dtype=torch.int64)
    addresses = indices_NK.data_ptr(), place.data_ptr(), slots.data_ptr(), counts.data_ptr()
    capacity = call("experts_layout", *addresses, count, experts, step)
    if capacity == OUT_OF_RANGE:
        raise IndexError(f"an expert index is not in 0…{experts - 1}")
    return place, slots[: experts * capacity]


def _gather(rows: Tensor, slots: Tensor, K: int, threads: int) -> Tensor:
    """The token's row for each row of the experts, zero on padding."""
    out = rows.new_empty(slots.numel(), rows.shape[1])
    width = rows.shape[1] * rows.element_size()
    call("experts_gather", rows.data_ptr(), slots.data_ptr(), out.data_ptr(), slots.numel(), K, width, threads)
    return out


def _sum(rows_ECD: Tensor, place: Tensor, K: int, threads: int) -> Tensor:
    """Σ_k rows[place[n, k]] -> [N, D]."""
    width = rows_ECD.shape[-1]
    out = rows_ECD.new_empty(place.numel() // K, width)
    addresses = rows_ECD.data_ptr(), place.data_ptr(), out.data_ptr()
    call("experts_sum", *addresses, out.shape[0], K, width, threads, is_half(out))
    return out
