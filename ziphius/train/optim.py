"""AdamW (V3 §4.2's values; torch's fused kernel, on a CPU and on a card) and Muon, over the flat master weights."""

from __future__ import annotations

import torch
from torch import Tensor

from ziphius.train.settings import OptimizerSettings
from ziphius.train.weights import Slot, Weights


class Optimizer:
    """One step on the flat weights. State: two moments as long as the master, and the number of updates."""

    def __init__(self, weights: Weights, settings: OptimizerSettings) -> None:
        self.weights, self.settings = weights, settings
        self.first = torch.zeros_like(weights.master)
        self.second = torch.zeros_like(weights.master)
        self.updates = 0
        muon = [slot for slot in weights.slots if settings.kind == "muon" and _is_block_matrix(slot)]
        self.muon_groups = _by_shape(muon)
        names = {slot.name for slot in muon}
        self.adam_spans = _spans([slot for slot in weights.slots if slot.name not in names])

    @torch.no_grad()
    def step(self, grad: Tensor, lr: float) -> None:
        """Update the master with `grad` (already averaged and clipped) and publish the working weights."""
        self.updates += 1
        for span, decayed in self.adam_spans:
            self._adam(span, grad, lr, self.settings.weight_decay if decayed else 0.0)
        for slots in self.muon_groups:
            self._muon(slots, grad, lr)
        self.weights.publish()

    def _adam(self, span: slice, grad: Tensor, lr: float, weight_decay: float) -> None:
        s = self.settings
        updates = torch.full((), float(self.updates), device=grad.device)  # filled there: no copy to wait for
        torch._fused_adamw_(
            [self.weights.master[span]],
            [grad[span]],
            [self.first[span]],
            [self.second[span]],
            [],
            [updates],
            lr=lr,
            beta1=s.beta1,
            beta2=s.beta2,
            weight_decay=weight_decay,
            eps=s.eps,
            amsgrad=False,
            maximize=False,
        )

    def _muon(self, slots: list[Slot], grad: Tensor, lr: float) -> None:
        """Update all matrices of one shape together: one stack means few, larger products."""
        s = self.settings
        momenta = []
        for slot in slots:
            momentum = self.first[slot.part].mul_(s.momentum).add_(grad[slot.part])
            momenta.append(grad[slot.part].add(momentum, alpha=s.momentum).view(-1, *slot.shape[-2:]))
        updates = orthogonalise(torch.cat(momenta)).split([len(m) for m in momenta])
        scale = 0.2 * max(slots[0].shape[-2:]) ** 0.5
        for slot, update in zip(slots, updates, strict=True):
            weight = self.weights.master[slot.part]
            weight.mul_(1 - lr * s.weight_decay).add_(update.reshape(-1), alpha=-lr * scale)

    def state_dict(self) -> dict[str, Tensor]:
        return {"first": self.first, "second": self.second, "updates": torch.tensor(self.updates)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.first.copy_(state["first"])
        self.second.copy_(state["second"])
        self.updates = int(state["updates"])


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrix of each of a stack [N, A, B], approximately: Muon's quintic Newton–Schulz.

    Singular values end between about 0.7 and 1.2 (Jordan et al. 2024, coefficients 3.4445, −4.7750, 2.0315; BF16 is
    enough for that). Returns fp32.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = (x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)).bfloat16()
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return (x.mT if tall else x).float()


def _by_shape(slots: list[Slot]) -> list[list[Slot]]:
    """Slots whose matrices have the same two last sizes, together, in the order of their first."""
    groups: dict[tuple[int, ...], list[Slot]] = {}
    for slot in slots:
        groups.setdefault(tuple(slot.shape[-2:]), []).append(slot)
    return list(groups.values())


def _is_block_matrix(slot: Slot) -> bool:
    outside = ("embed_tokens.", "lm_head.")
    return len(slot.shape) > 1 and not any(part in slot.name for part in outside)


def _spans(slots: list[Slot]) -> list[tuple[slice, bool]]:
    """Neighbouring slots of one kind (decayed matrices, or vectors) joined into spans of the flat buffer."""
    spans: list[tuple[slice, bool]] = []
    for slot in slots:
        decayed = len(slot.shape) > 1
        if spans and spans[-1][0].stop == slot.start and spans[-1][1] == decayed:
            spans[-1] = (slice(spans[-1][0].start, slot.part.stop), decayed)
        else:
            spans.append((slot.part, decayed))
    return spans
