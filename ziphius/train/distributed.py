"""Several processes on one model: torch.distributed, started by `ziphius run` itself or by torchrun."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process's place among its peers. One process alone needs no process group."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """Add up `tensor` over all ranks, in place; the same bits on every rank."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def sum_numbers(self, values: dict[str, float]) -> dict[str, float]:
        """Add up named numbers over all ranks (every rank must bring the same names)."""
        if self.size == 1:
            return dict(values)
        total = self.sum_(torch.tensor(list(values.values()), dtype=torch.float64))
        return dict(zip(values, total.tolist(), strict=True))

    def broadcast(self, value: object) -> object:
        """What rank 0 holds, on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: object) -> list:
        """The values of all ranks, in order, on every rank."""
        if self.size == 1:
            return [value]
        box: list = [None] * self.size
        dist.all_gather_object(box, value)
        return box

    def on_main(self, work: Callable[[], T]) -> T:
        """What `work` returns on rank 0, on every rank; where it raises ValueError or OSError there, so do all."""
        result: T | None = None
        failure: Exception | None = None
        if self.is_main:
            try:
                result = work()
            except (ValueError, OSError) as error:
                failure = error
        result, said = cast("tuple[T, str | None]", self.broadcast((result, failure and str(failure))))
        if said is not None:
            raise failure or ValueError(said)
        return result

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()


def join_world() -> World:
    """Join the process group described by torchrun's environment, or stay alone where there is none."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World()
    rank = int(os.environ["RANK"])
    if not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return World(rank, size)


def leave_world() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
