"""Several processes on one model: torch.distributed, started by `ziphius run` itself or by torchrun."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist

# Its functions hold the group that exists when it is loaded, as the default of an argument. Where torch loads it by
# itself in the midst of a run (with torch._dynamo, which many calls bring in), that group outlives `leave`: its
# threads still hold the last collective's tensors while Python ends, and the one that lets go of them then ends the
# process with "terminate called without an active exception" and code 134. Loaded here it finds no group to hold.
import torch.distributed.nn
from torch import Tensor

T = TypeVar("T")
# While rank 0 reads a corpus or learns a tokenizer the others wait in a collective, for hours where that takes hours;
# torch would give them 10 minutes on GPUs and 30 on CPUs. Whoever started the processes sees one end much sooner.
_PATIENCE = timedelta(hours=3)
_BROKEN = ("Connection closed", "Connection reset", "Broken pipe", "Socket closed", "failed to recv", "Timed out")


@dataclass(frozen=True)
class Place:
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

    def on_main(self, work: Callable[[], T]) -> T:
        """What `work` returns when rank 0 alone does it, on every rank; likewise a ValueError or OSError of it."""
        done: T | None = None
        failed: ValueError | OSError | None = None
        if self.is_main:
            try:
                done = work()
            except (ValueError, OSError) as error:
                failed = error
        done, failed = cast(tuple[T | None, ValueError | OSError | None], self.broadcast((done, failed)))
        if failed is not None:
            raise failed
        return cast(T, done)

    def gather(self, value: object) -> list:
        """The values of all ranks, in order, on every rank."""
        if self.size == 1:
            return [value]
        box: list = [None] * self.size
        dist.all_gather_object(box, value)
        return box

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()


def join() -> Place:
    """Join the process group described by torchrun's environment, or stay alone where there is none."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Place()
    rank = int(os.environ["RANK"])
    if not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=_PATIENCE)
    return Place(rank, size)


def lost_peers(error: BaseException) -> bool:
    """Whether `error` only says that another process of the group has ended."""
    text = str(error)
    broken = isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in text)
    return broken and any(sign in text for sign in _BROKEN)


def leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
