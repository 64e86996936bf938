"""All weights of a model in a few flat buffers: the fp32 master, its gradient, and a BF16 working copy.

One tensor means one fused optimiser call, one all-reduce and one write per checkpoint, and under BF16 one cast a step
instead of one per matrix and pass. Source: V3 §3.3.3 (fp32 master weights and gradients beside a low-precision copy).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ziphius.train.weights.face import Slot


class ReplicatedWeights:
    """Moves a model's trained parameters into flat storage, the same on every process; modules work on views of it.

    Under BF16 the matrices of attention and experts live in the working copy; embedding, head, gates and norms stay
    in fp32 (V3 §3.3.2 keeps the same parts in higher precision). Parameters are laid out working ones first, then the
    other matrices, then the vectors, so that what one optimiser call treats alike lies together. Frozen ones stay where
    and as they are. Raises ValueError where all are frozen.
    """

    def __init__(self, model: nn.Module, bf16: bool) -> None:
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        if not named:
            raise ValueError("nothing to train: every parameter of the model is frozen (requires_grad is False)")
        working = [(name, p) for name, p in named if bf16 and _in_low_precision(name, p)]
        rest = [(name, p) for name, p in named if not (bf16 and _in_low_precision(name, p))]
        rest.sort(key=lambda item: item[1].ndim == 1)  # stable: matrices first, each kind in the model's order
        self.model = model
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

    def collect(self) -> None:
        """Add the working copy's gradient of one micro-batch to `grad`: they add up in fp32 and not in BF16."""
        low = self.grad[: self.split]
        if self._collected:
            low += self.working_grad
        else:
            low.copy_(self.working_grad)
        self._collected = True
        self.working_grad.zero_()

    def total(self, sum_: Callable[[Tensor], Tensor]) -> Tensor:
        """The gradient of every backward pass since `zero` and of all processes, in fp32."""
        return sum_(self.grad)

    def norm(self, grad: Tensor) -> Tensor:
        return torch.linalg.vector_norm(grad)

    def zero(self) -> None:
        self.grad.zero_()
        self.working_grad.zero_()
        self._collected = False

    def state(self) -> dict[str, Tensor]:
        """The whole network by name: trained tensors in fp32, as views of the master, the rest as the model has it.

        A tensor with two names, as the head of a network that ties it to its embedding, stands under both.
        """
        first_name = {p: name for name, p in self.model.named_parameters()}
        trained = {slot.name: self.master[slot.part].view(slot.shape) for slot in self.slots}
        state = dict(self.model.state_dict())
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            if parameter.requires_grad:
                state[name] = trained[first_name[parameter]]
        return state


def _in_low_precision(name: str, parameter: nn.Parameter) -> bool:
    kept = ("embed_tokens.", "lm_head.", "mlp.gate.weight")
    return parameter.ndim > 1 and not any(part in name for part in kept)
