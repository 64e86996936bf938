"""What the loop, the optimiser and whoever saves or resumes know of the weights' storage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Slot:
    """Where one parameter lies in the master buffer."""

    name: str
    start: int
    shape: torch.Size

    @property
    def part(self) -> slice:
        return slice(self.start, self.start + self.shape.numel())


class Weights(Protocol):
    """The trained parameters of a model, whose modules go on working on them.

    A step is: `zero`, then for each micro-batch a backward pass and `collect`, then `total`, an update of `master` with
    what `total` gave, and `publish`. What is frozen (`requires_grad` False) has no part in it and keeps its dtype.
    """

    @property
    def slots(self) -> Sequence[Slot]:
        """The parameters that this process updates, in the order of `master`."""

    @property
    def master(self) -> Tensor:
        """fp32, one axis: what this process updates."""

    def zero(self) -> None:
        """Forget the gradients of the step before."""

    def collect(self) -> None:
        """Add what a backward pass left to the step's gradient, in fp32 (V3 §3.3.3)."""

    def total(self, sum_: Callable[[Tensor], Tensor]) -> Tensor:
        """The step's gradient over all processes, laid out as `master`; `sum_` adds a tensor up over them in place."""

    def norm(self, grad: Tensor) -> Tensor:
        """The length of the whole gradient of which `grad` is this process's part, as a number on its device."""

    def publish(self) -> None:
        """Let the modules see `master`, after it was changed."""

    def state(self) -> dict[str, Tensor]:
        """The whole network by `state_dict`'s names: trained tensors in fp32, the rest as the model has it."""
