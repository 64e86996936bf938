"""A network whose large matrices are 8-bit numbers, for sampling: weights only, activations stay as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ziphius.model.layers import Linear
from ziphius.model.pieces import ExpertList, in_pieces
from ziphius.model.transformer import Transformer
from ziphius.ops.fp8 import Fp8Matrix, quantise_fp8
from ziphius.ops.int8 import Int8Matrix, quantise_int8

Packed = Int8Matrix | Fp8Matrix
FOLDED = "kv_b_proj"  # into queries and outputs while decoding, so it stays as it is
UNPACKED = {"int8": {FOLDED}, "fp8": {FOLDED, "lm_head", "eh_proj"}}  # the latter as the published folders have it
_PACK: dict[str, Callable[[Tensor], Packed]] = {"int8": quantise_int8, "fp8": quantise_fp8}


class PackedLinear(nn.Module):
    """A linear layer, with its bias where it has one, whose matrix is `values` [M, K] and their `scale`."""

    values: Tensor
    scale: Tensor

    def __init__(self, matrix: Packed, bias: nn.Parameter | None) -> None:
        super().__init__()
        self._kind = type(matrix)
        self.register_buffer("values", matrix.values)
        self.register_buffer("scale", matrix.scale)
        self.bias = bias

    @property
    def matrix(self) -> Packed:
        return self._kind(self.values, self.scale)

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.matrix.dequantise(x.dtype), bias)


@torch.no_grad()
def quantise(model: Transformer, form: Literal["int8", "fp8"] = "int8") -> Transformer:
    """`model` itself, in pieces, its matrices in 8 bits, and half of its BF16 memory free.

    What stays: the embedding, the norms, the gates, and the linear layers that `UNPACKED` names. As 8-bit integers a
    tied head becomes a matrix of its own: a step reads all of it, and of the embedding a row a token, so half the bytes
    a step are worth half of the embedding's memory more.
    """
    in_pieces(model)
    pack = _PACK[form]
    for module in [*model.modules()]:
        if isinstance(module, ExpertList):
            for matrices in (module.gate, module.up, module.down):
                matrices[:] = [pack(matrix) if isinstance(matrix, Tensor) else matrix for matrix in matrices]
        for name, child in [*module.named_children()]:
            if isinstance(child, Linear) and name not in UNPACKED[form]:
                setattr(module, name, PackedLinear(pack(child.weight), child.bias))
    return model
