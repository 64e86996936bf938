"""The routed experts on a card: rows sorted by expert and multiplied group by group, without a word to the host.

How many rows each expert has is known on the device alone; torch's grouped product reads the groups' ends there.

N tokens of a flattened batch, K experts per token, P = N·K pairs of the two, E experts, D model, F expert hidden.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import grouped_mm

from ziphius.ops.swiglu import swiglu_grad, swiglu_reference

_ALIGNED = 8  # bf16 elements that make the 16 bytes of which the product wants each row to be a multiple


def groups_without_asking(device: torch.device) -> bool:
    """Whether torch's grouped product leaves the groups' ends on the device: on Hopper and its successors' servers.

    Elsewhere it fetches them and loops over the groups.
    """
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] in (9, 10)


def takes_sorted(x_ND: Tensor, down_EDF: Tensor) -> bool:
    """Whether `SortedExperts` serves these without asking the device."""
    whole = x_ND.shape[1] % _ALIGNED == 0 and down_EDF.shape[2] % _ALIGNED == 0
    return x_ND.dtype == torch.bfloat16 and whole and groups_without_asking(x_ND.device)


def expert_loads(indices_NK: Tensor, experts: int, valid_N: Tensor | None = None) -> Tensor:
    """How many of the (`valid`) tokens chose each expert: int64 [E], counted without asking the device."""
    counted = torch.ones_like(indices_NK) if valid_N is None else valid_N.view(-1, 1).expand_as(indices_NK).long()
    loads = indices_NK.new_zeros(experts)
    return loads.scatter_add_(0, indices_NK.reshape(-1), counted.reshape(-1))


class SortedExperts(torch.autograd.Function):
    """Σ_k weight_k · down_e(swiglu(gate_up_e(x))), with as many rows as there are pairs and none of padding.

    Keeps the tokens and the gates' products; the rows are gathered and SwiGLU is computed again in the backward (V3
    §3.3.3). Frozen experts get no gradient, and none is computed. Sums are in a fixed order.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, indices: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        token_P, place_NK, ends_E = _sort(indices, gate_up.shape[0])
        w_P1 = torch.empty_like(weights).view(-1, 1).index_copy_(0, place_NK.view(-1), weights.reshape(-1, 1))
        pre = grouped_mm(x[token_P], gate_up.transpose(1, 2), offs=ends_E)
        y = grouped_mm(swiglu_reference(pre) * w_P1, down.transpose(1, 2), offs=ends_E)
        ctx.save_for_backward(x, w_P1, pre, gate_up, down, token_P, place_NK, ends_E)
        return gather_sum(y, place_NK)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, w_P1, pre, gate_up, down, token_P, place_NK, ends_E = ctx.saved_tensors
        grad_y = grads[0][token_P]
        grad_scaled = grouped_mm(grad_y, down, offs=ends_E)
        hidden = swiglu_reference(pre)
        grad_weights = torch.linalg.vecdot(grad_scaled, hidden)[place_NK]
        grad_pre = swiglu_grad(pre, grad_scaled * w_P1)
        grad_gate_up = grad_down = None
        if ctx.needs_input_grad[3]:
            grad_gate_up = grouped_mm(grad_pre.t(), x[token_P], offs=ends_E)
        if ctx.needs_input_grad[4]:
            grad_down = grouped_mm(grad_y.t(), hidden * w_P1, offs=ends_E)
        grad_x = gather_sum(grouped_mm(grad_pre, gate_up, offs=ends_E), place_NK)
        return grad_x, None, grad_weights, grad_gate_up, grad_down


def _sort(indices_NK: Tensor, experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Token of each row [P], row of each pair [N, K], and where each expert's rows have ended [E] (int32)."""
    order = torch.argsort(indices_NK.reshape(-1), stable=True)
    place = torch.empty_like(order).scatter_(0, order, torch.arange(order.numel(), device=order.device))
    ends = expert_loads(indices_NK, experts).cumsum(0).to(torch.int32)
    return order // indices_NK.shape[1], place.view_as(indices_NK), ends


def gather_sum(rows: Tensor, place_NK: Tensor) -> Tensor:
    """Σ_k rows[place[n, k]] -> [N, D]: a fixed order of additions, unlike a scatter."""
    total = rows[place_NK[:, 0]]
    for k in range(1, place_NK.shape[1]):
        total = total + rows[place_NK[:, k]]
    return total
