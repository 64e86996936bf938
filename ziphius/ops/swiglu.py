"""SwiGLU (Shazeer 2020, arXiv 2002.05202): silu(gate)·up."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ziphius.ops.backend import backend_for, leaves_formula
from ziphius.ops.native import swiglu as native


def swiglu(gate_up: Tensor) -> Tensor:
    """`gate_up` [..., 2F], gate first -> silu(gate)·up [..., F]."""
    if leaves_formula():
        return swiglu_reference(gate_up)
    if backend_for(gate_up) == "native":
        return native.Swiglu.apply(gate_up)
    return _Swiglu.apply(gate_up)


def swiglu_reference(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def swiglu_grad(gate_up: Tensor, grad: Tensor) -> Tensor:
    """Gradient of `swiglu` at `gate_up` [..., 2F] for `grad` [..., F], written into one new [..., 2F] tensor."""
    gate, up = gate_up.chunk(2, dim=-1)
    if torch.compiler.is_compiling():  # it writes into one tensor by itself, and takes no order to
        return torch.cat([torch.ops.aten.silu_backward(grad * up, gate), grad * F.silu(gate)], dim=-1)
    out = torch.empty_like(gate_up)
    grad_gate, grad_up = out.chunk(2, dim=-1)
    torch.mul(grad, F.silu(gate), out=grad_up)
    grad_gate.copy_(torch.ops.aten.silu_backward(grad * up, gate))
    return out


class _Swiglu(torch.autograd.Function):
    """Keeps only the input: silu is computed again in the backward, as V3 does (§3.3.3)."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        return swiglu_reference(gate_up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return swiglu_grad(ctx.saved_tensors[0], grads[0])
