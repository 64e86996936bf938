"""A network whose matrices lie apart, as published folders hold them: what is sampled from a file's map.

Training stacks what is multiplied together (`MLP`, `Experts`). For sampling it may lie in pieces, each in a number
format of its own. N tokens, D model, E experts, F expert hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ziphius import ops
from ziphius.model.experts import MLP, Experts
from ziphius.model.layers import Linear
from ziphius.model.transformer import Transformer
from ziphius.ops.matrix import Matrix, dense


class GateUp(nn.Module):
    """In the place of an MLP's `gate_up_proj`: two linear layers, whose results stand side by side."""

    def __init__(self, gate: nn.Module, up: nn.Module) -> None:
        super().__init__()
        self.gate, self.up = gate, up

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.gate(x), self.up(x)], dim=-1)


class ExpertList(nn.Module):
    """In the place of `Experts`: matrices [F, D] (`gate`, `up`) and [D, F] (`down`), one each an expert.

    They are no parameters or buffers of the module: a V3 has 44,544 of them. Those that no token chose are not read;
    `paged` says that they may lie on disk.
    """

    def __init__(self, gate: list[Matrix], up: list[Matrix], down: list[Matrix]) -> None:
        super().__init__()
        self.gate, self.up, self.down = gate, up, down
        self.paged = False

    def forward(self, x_ND: Tensor, indices_NK: Tensor, weights_NK: Tensor) -> Tensor:
        used_E, places_NK = indices_NK.unique(return_inverse=True)
        used, dtype = used_E.tolist(), x_ND.dtype
        up = torch.stack([torch.cat([dense(self.gate[e], dtype), dense(self.up[e], dtype)]) for e in used])
        down = torch.stack([dense(self.down[e], dtype) for e in used])
        return ops.grouped_experts(x_ND, places_NK, weights_NK, up, down)


@torch.no_grad()
def in_pieces(model: Transformer) -> Transformer:
    """`model` itself with what it stacks in pieces, which are views of the same memory."""
    for module in [*model.modules()]:
        for name, child in [*module.named_children()]:
            if isinstance(module, MLP) and name == "gate_up_proj" and isinstance(child, Linear):
                setattr(module, name, GateUp(*_halves(child)))
            elif isinstance(child, Experts):
                gate, up = child.gate_up_proj.detach().chunk(2, dim=1)
                setattr(
                    module, name, ExpertList([*gate.unbind()], [*up.unbind()], [*child.down_proj.detach().unbind()])
                )
    return model


def lies_in_pieces(model: Transformer) -> bool:
    return any(isinstance(module, GateUp | ExpertList) for module in model.modules())


def _halves(linear: Linear) -> list[Linear]:
    halves = []
    for half, weight in enumerate(linear.weight.chunk(2)):
        with torch.device("meta"):
            part = Linear(linear.in_features, linear.out_features // 2)
        part.weight = nn.Parameter(weight)
        if linear.bias is not None:
            part.bias = nn.Parameter(linear.bias.chunk(2)[half])
        halves.append(part)
    return halves
