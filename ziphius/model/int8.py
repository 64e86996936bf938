"""A network whose large matrices are 8-bit integers, for sampling: weights only, activations stay as they are.

M rows, K columns, E experts, N tokens, D model.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ziphius import ops
from ziphius.model.experts import Experts
from ziphius.model.layers import Linear
from ziphius.model.transformer import Transformer
from ziphius.ops.int8 import Int8Matrix, quantise_int8


class Int8Linear(nn.Module):
    """A matrix, with its bias where it has one: `values` [M, K], `scale` [M]."""

    values: Tensor
    scale: Tensor

    def __init__(self, linear: Linear) -> None:
        super().__init__()
        _keep(self, "", linear.weight)
        self.bias = linear.bias

    @property
    def matrix(self) -> Int8Matrix:
        return Int8Matrix(self.values, self.scale)

    def forward(self, x: Tensor) -> Tensor:
        out = F.linear(x, self.values.to(x.dtype)) * self.scale.to(x.dtype)
        return out if self.bias is None else out + self.bias.to(x.dtype)


class Int8Experts(nn.Module):
    """`Experts` in 8 bits; those that no token chose are not read."""

    up_values: Tensor
    up_scale: Tensor
    down_values: Tensor
    down_scale: Tensor

    def __init__(self, experts: Experts) -> None:
        super().__init__()
        _keep(self, "up_", experts.gate_up_proj)
        _keep(self, "down_", experts.down_proj)

    @property
    def gate_up_proj(self) -> Int8Matrix:
        return Int8Matrix(self.up_values, self.up_scale)

    @property
    def down_proj(self) -> Int8Matrix:
        return Int8Matrix(self.down_values, self.down_scale)

    def forward(self, x_ND: Tensor, indices_NK: Tensor, weights_NK: Tensor) -> Tensor:
        used_E, places_NK = indices_NK.unique(return_inverse=True)
        up, down = (
            Int8Matrix(x.values[used_E], x.scale[used_E]).dequantise(x_ND.dtype)
            for x in (self.gate_up_proj, self.down_proj)
        )
        return ops.grouped_experts(x_ND, places_NK, weights_NK, up, down)


@torch.no_grad()
def quantise(model: Transformer) -> Transformer:
    """`model` itself with its matrices in 8 bits, and half of its BF16 memory free.

    What stays: the embedding, the norms, the gates, and `kv_b_proj`, which decoding folds into queries and outputs. A
    tied head becomes a matrix of its own: a step reads all of it, and of the embedding a row a token, so half the bytes
    a step are worth half of the embedding's memory more.
    """
    for module in [*model.modules()]:
        for name, child in [*module.named_children()]:
            if isinstance(child, Linear) and name != "kv_b_proj":
                setattr(module, name, Int8Linear(child))
            elif isinstance(child, Experts):
                setattr(module, name, Int8Experts(child))
    return model


def _keep(module: nn.Module, prefix: str, weight: Tensor) -> None:
    matrix = quantise_int8(weight)
    module.register_buffer(f"{prefix}values", matrix.values)
    module.register_buffer(f"{prefix}scale", matrix.scale)
