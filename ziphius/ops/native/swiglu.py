"""SwiGLU in one pass forward and one backward (`swiglu.c`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ziphius.ops.native.call import call, is_half


class Swiglu(torch.autograd.Function):
    """Keeps only the input, as the torch path does."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        gate_up = gate_up.contiguous()
        width = gate_up.shape[-1] // 2
        y = gate_up.new_empty(*gate_up.shape[:-1], width)
        rows = gate_up.numel() // (2 * width)
        last = rows, width, torch.get_num_threads(), is_half(y)
        call("swiglu_forward", gate_up.data_ptr(), None, None, y.data_ptr(), *last)
        ctx.save_for_backward(gate_up)
        ctx.last = last
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        grad, grad_gate_up = grad.contiguous(), torch.empty_like(gate_up)
        addresses = gate_up.data_ptr(), None, None, grad.data_ptr(), grad_gate_up.data_ptr(), None, None
        call("swiglu_backward", *addresses, *ctx.last)
        return grad_gate_up
