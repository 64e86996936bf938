"""All weights of a model in a few flat buffers: the fp32 master, its gradient, and a BF16 working copy.

One tensor means one fused optimiser call, one all-reduce and one write per checkpoint, and under BF16 one cast a step
instead of one per matrix and pass. Source: V3 §3.3.3 (fp32 master weights and gradients beside a low-precision copy).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Slot:
    """Where one parameter lies in the master buffer."""

    name: str
    start: int
    shape: torch.Size

    @property
    def part(self) -> slice:
        return slice(self.start, self.start + self.shape.numel())


class FlatParameters:
    """Moves a model's parameters into flat storage; the modules keep working on views of it.

    Under BF16 the matrices of attention and experts live in the working copy; embedding, head, gates and norms stay
    in fp32 (V3 §3.3.2 keeps the same parts in higher precision). Parameters are laid out working ones first, then the
    other matrices, then the vectors, so that what one optimiser call treats alike lies together.
    """

    def __init__(self, model: nn.Module, bf16: bool) -> None:
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        working = [(name, p) for name, p in named if bf16 and _in_low_precision(name, p)]
        rest = [(name, p) for name, p in named if not (bf16 and _in_low_precision(name, p))]
        rest.sort(key=lambda item: item[1].ndim == 1)  # stable: matrices first, each kind in the model's order
        self.slots: list[Slot] = []
        start = 0
        for name, p in working + rest:
            self.slots.append(Slot(name, start, p.shape))
            start += p.numel()
        self.split = sum(p.numel() for _, p in working)
        device = named[0][1].device
        self.master = torch.empty(start, dtype=torch.float32, device=device)
        self.grad = torch.zeros(start, dtype=torch.float32, device=device)
        self.working = torch.empty(self.split, dtype=torch.bfloat16, device=device)
        self.working_grad = torch.zeros_like(self.working)
        self._collected = False  # whether `grad` holds an earlier micro-batch's
        for slot, (_, p) in zip(self.slots, working + rest, strict=True):
            self.master[slot.part] = p.detach().reshape(-1)
            low = slot.start < self.split
            weights, grads = (self.working, self.working_grad) if low else (self.master, self.grad)
            p.data = weights[slot.part].view(slot.shape)
            p.grad = grads[slot.part].view(slot.shape)
        self.publish()

    def publish(self) -> None:
        """Copy the master into the working weights, after an update."""
        self.working.copy_(self.master[: self.split])

    def collect_grad(self) -> Tensor:
        """The whole gradient in fp32, as one tensor, of every backward pass since `zero_grad`.

        Call it after each micro-batch: then they add up in fp32 and not in BF16 (V3 §3.3.3).
        """
        low = self.grad[: self.split]
        if self._collected:
            low += self.working_grad
        else:
            low.copy_(self.working_grad)
        self._collected = True
        self.working_grad.zero_()
        return self.grad

    def zero_grad(self) -> None:
        self.grad.zero_()
        self.working_grad.zero_()
        self._collected = False

    def full_state(self) -> dict[str, Tensor]:
        """fp32 tensors by parameter name, views of the master."""
        return {slot.name: self.master[slot.part].view(slot.shape) for slot in self.slots}


def _in_low_precision(name: str, parameter: nn.Parameter) -> bool:
    kept = ("embed_tokens.", "lm_head.", "mlp.gate.weight")
    return parameter.ndim > 1 and not any(part in name for part in kept)
