"""The routed experts: every token goes to its K experts, none is dropped.

N tokens of a flattened batch, K experts per token, E experts, D model, F expert hidden.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ziphius.ops.backend import backend_for, compute_dtype
from ziphius.ops.native import experts as native
from ziphius.ops.sorted_experts import SortedExperts, expert_loads, gather_sum, takes_sorted
from ziphius.ops.swiglu import swiglu_grad, swiglu_reference

# A GPU reads a matrix for as long as it multiplies some 300 rows by it (H100: 989 TFLOP/s, 3.35 TB/s, two FLOP and two
# bytes a weight): up to about so many tokens, rows that no token needs cost no time.
UNCOUNTED_TOKENS = 256
_GATHER_COST = 3  # a matrix that is gathered is read, written and read again


def grouped_experts(
    x_ND: Tensor, indices_NK: Tensor, weights_NK: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor
) -> Tensor:
    """Σ_k weight_k · down_e(swiglu(gate_up_e(x))) over the K experts e chosen for each token -> [N, D].

    Source: V3 §2.1.2, equations 12–13. Deterministic: tokens are gathered and summed in a fixed order.
    """
    dtype = compute_dtype(x_ND)
    x_ND, gate_up_E2FD, down_EDF = x_ND.to(dtype), gate_up_E2FD.to(dtype), down_EDF.to(dtype)
    name = backend_for(x_ND, weights_NK, gate_up_E2FD, down_EDF)
    if name == "native":
        step = _capacity_step(indices_NK.numel(), gate_up_E2FD.shape[0], dtype)
        return native.GroupedExperts.apply(x_ND, indices_NK, weights_NK.float(), gate_up_E2FD, down_EDF, step)
    args = x_ND, indices_NK, weights_NK.to(dtype), gate_up_E2FD, down_EDF
    if name == "reference":
        return grouped_experts_reference(*args)
    if name == "triton" and len(x_ND) <= UNCOUNTED_TOKENS and not torch.is_grad_enabled():
        chosen = _GATHER_COST * indices_NK.numel() <= len(gate_up_E2FD)
        return chosen_experts(*args) if chosen else every_expert(*args)
    return (SortedExperts if takes_sorted(x_ND, down_EDF) else _GroupedExperts).apply(*args)


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
    """Every expert gets the same number of rows, the largest load rounded up, so that one batched product serves all.

    Rows beyond an expert's load carry weight zero, which keeps them out of the result and of every gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, indices: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        experts = gate_up.shape[0]
        place_NK, token_of_row = _lay_out(indices, experts)
        w_rows = x.new_zeros(token_of_row.numel(), 1)
        w_rows[place_NK.reshape(-1)] = weights.reshape(-1, 1)
        x_ECD = x[token_of_row].unflatten(0, (experts, -1))
        w_EC1 = w_rows.unflatten(0, (experts, -1))
        pre = torch.bmm(x_ECD, gate_up.transpose(1, 2))
        hidden = swiglu_reference(pre)
        y = torch.bmm(hidden * w_EC1, down.transpose(1, 2)).flatten(0, 1)
        ctx.save_for_backward(x_ECD, w_EC1, pre, hidden, gate_up, down, token_of_row, place_NK)
        return gather_sum(y, place_NK)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_ECD, w_EC1, pre, hidden, gate_up, down, token_of_row, place_NK = ctx.saved_tensors
        grad_y = grads[0][token_of_row].view_as(x_ECD)
        grad_scaled = torch.bmm(grad_y, down)
        # Frozen experts cost neither the memory of their gradients nor the products.
        grad_down = torch.bmm(grad_y.transpose(1, 2), hidden * w_EC1) if ctx.needs_input_grad[4] else None
        grad_weights = torch.linalg.vecdot(grad_scaled, hidden).flatten()[place_NK]
        grad_pre = swiglu_grad(pre, grad_scaled.mul_(w_EC1))
        grad_gate_up = torch.bmm(grad_pre.transpose(1, 2), x_ECD) if ctx.needs_input_grad[3] else None
        grad_x = gather_sum(torch.bmm(grad_pre, gate_up).flatten(0, 1), place_NK)
        return grad_x, None, grad_weights, grad_gate_up, grad_down


def _lay_out(indices_NK: Tensor, experts: int) -> tuple[Tensor, Tensor]:
    """Row of each token–expert pair [N, K], and the token of each row [E·C] (token 0 on rows that are padding).

    The capacity C must be known here: where the loads lie on a device, this waits for it.
    """
    flat = indices_NK.reshape(-1)
    order = torch.argsort(flat, stable=True)
    counts = expert_loads(indices_NK, experts)
    step = 1 << max(3, (flat.numel() // (4 * experts)).bit_length() - 1)
    capacity = -(-int(counts.max()) // step) * step
    sorted_expert = flat[order]
    rank = torch.arange(flat.numel(), device=flat.device) - (counts.cumsum(0) - counts)[sorted_expert]
    row = sorted_expert * capacity + rank
    place = torch.empty_like(order)
    place[order] = row
    token_of_row = flat.new_zeros(experts * capacity)
    token_of_row[row] = order // indices_NK.shape[1]
    return place.view_as(indices_NK), token_of_row


def every_expert(x_ND: Tensor, indices_NK: Tensor, weights_NK: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """All tokens through all experts, of which each token takes its own: nothing is counted, so the host never waits
    for the device. Where most experts are wanted by some token it reads no more weights than it must. No gradients."""
    E, N = len(gate_up), len(x_ND)
    w_EN = x_ND.new_zeros(N, E).scatter_(1, indices_NK, weights_NK).t()
    pre = torch.bmm(x_ND.expand(E, -1, -1), gate_up.transpose(1, 2))
    y_END = torch.bmm(swiglu_reference(pre) * w_EN.unsqueeze(2), down.transpose(1, 2))
    place_NK = indices_NK * N + torch.arange(N, device=x_ND.device).unsqueeze(1)
    return gather_sum(y_END.flatten(0, 1), place_NK)


def chosen_experts(x_ND: Tensor, indices_NK: Tensor, weights_NK: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """Copies of each token's experts: for so few tokens that the copies are fewer than the experts. Asks the device
    nothing either. No gradients."""
    N, K = indices_NK.shape
    pairs = indices_NK.reshape(-1)
    x_PD1 = x_ND.repeat_interleave(K, dim=0).unsqueeze(2)
    pre = torch.bmm(gate_up[pairs], x_PD1).squeeze(2)
    hidden = swiglu_reference(pre) * weights_NK.reshape(-1, 1)
    y_PD = torch.bmm(down[pairs], hidden.unsqueeze(2)).squeeze(2)
    return gather_sum(y_PD, torch.arange(N * K, device=x_ND.device).view(N, K))


def _capacity_step(pairs: int, experts: int, dtype: torch.dtype) -> int:
    """The capacity C is a multiple of this. In BF16 about a quarter of the mean load: few distinct shapes reach the
    matrix library, which on a CPU compiles a kernel for each new one; in fp32 it compiles none."""
    quarter = pairs // (4 * experts) if dtype == torch.bfloat16 else 0
    return max(8, 1 << max(quarter.bit_length() - 1, 0))
