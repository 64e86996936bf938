"""Low-rank updates of frozen matrices (LoRA, Hu et al. 2021, arXiv 2106.09685): W x + s·B(A x), s = alpha / rank.

An adapted module takes the place of the plain one and keeps its parameters under their names, so that whatever knows
the network by its state dict finds the same tensors; A and B stand beside them, below `lora`.

D in, O out, R rank, E experts, F expert hidden.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ziphius import ops
from ziphius.model.experts import Experts
from ziphius.model.layers import Linear


class LowRank(nn.Module):
    """s·B A: A [R, D] or a stack [E, R, D], uniform within 1/√D; B [O, R] or [E, O, R], zero: it begins as 0."""

    def __init__(self, shape: tuple[int, ...], rank: int, scale: float, generator: torch.Generator) -> None:
        """`shape`: of the matrix, [O, D] or [E, O, D]."""
        super().__init__()
        *stack, rows, columns = shape
        self.scale = scale
        first = torch.empty(*stack, rank, columns).uniform_(-(columns**-0.5), columns**-0.5, generator=generator)
        self.A = nn.Parameter(first)
        self.B = nn.Parameter(torch.zeros(*stack, rows, rank))

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., O], for a single matrix."""
        return F.linear(F.linear(x, self.A) * self.scale, self.B)

    def delta(self) -> Tensor:
        """The update as a matrix, or a stack of them."""
        return torch.matmul(self.B * self.scale, self.A)


class AdaptedLinear(Linear):
    """A frozen matrix, some of whose parts (blocks of rows, from the top) have an update; `parts` are their sizes."""

    def __init__(self, plain: Linear, parts: dict[str, int], updates: dict[str, LowRank]) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.weight, self.bias = plain.weight, plain.bias
        self.parts = parts
        self.lora = nn.ModuleDict(updates)
        self.active = True

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        if not self.active:
            return out
        added = [
            self.lora[part](x) if part in self.lora else out.new_zeros(*out.shape[:-1], rows)
            for part, rows in self.parts.items()
        ]
        return out + (added[0] if len(added) == 1 else torch.cat(added, dim=-1))

    @torch.no_grad()
    def merged(self) -> dict[str, Tensor]:
        """The matrix with its updates, fp32, under its name."""
        return {"weight": self.weight.float() + _joined(self.lora, self.parts, self.weight, dim=0)}


class AdaptedExperts(Experts):
    """Frozen routed experts with updates on their matrices. Each pass makes the sum of matrix and update: a layer's
    experts once more in memory, but one grouped product as ever."""

    def __init__(self, plain: Experts, updates: dict[str, LowRank]) -> None:
        nn.Module.__init__(self)
        self.gate_up_proj, self.down_proj = plain.gate_up_proj, plain.down_proj
        self.parts = dict.fromkeys(("gate_proj", "up_proj"), plain.down_proj.shape[2])
        self.lora = nn.ModuleDict(updates)
        self.active = True

    def forward(self, x_ND: Tensor, indices_NK: Tensor, weights_NK: Tensor) -> Tensor:
        if not self.active:
            return super().forward(x_ND, indices_NK, weights_NK)
        gate_up, down = self._sums()
        return ops.grouped_experts(x_ND, indices_NK, weights_NK, gate_up, down)

    @torch.no_grad()
    def merged(self) -> dict[str, Tensor]:
        """The stacks with their updates, under their names."""
        with torch.autocast(self.down_proj.device.type, enabled=False):
            gate_up, down = self._sums()
        return {"gate_up_proj": gate_up, "down_proj": down}

    def _sums(self) -> tuple[Tensor, Tensor]:
        gate_up: Tensor = self.gate_up_proj
        down: Tensor = self.down_proj
        if any(part in self.lora for part in self.parts):
            gate_up = gate_up + _joined(self.lora, self.parts, gate_up, dim=1)
        if "down_proj" in self.lora:
            down = down + _update(self.lora, "down_proj").delta()
        return gate_up, down


def _joined(updates: nn.ModuleDict, parts: dict[str, int], matrix: Tensor, dim: int) -> Tensor:
    """The updates of a matrix's parts as one of the whole's shape, nothing where a part has none."""
    deltas = []
    for part, rows in parts.items():
        shape = [*matrix.shape]
        shape[dim] = rows
        none = part not in updates
        deltas.append(matrix.new_zeros(shape) if none else _update(updates, part).delta())
    return torch.cat(deltas, dim=dim)


def _update(updates: nn.ModuleDict, part: str) -> LowRank:
    update = updates[part]
    assert isinstance(update, LowRank)
    return update
