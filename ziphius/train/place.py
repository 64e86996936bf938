"""Where a process computes: its rank among its peers, its device, and the number format of its products.

Everything above builds, loads and moves tensors through a place; nobody else asks what hardware there is. The peers are
torch.distributed's, started by `ziphius run` itself or by torchrun.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
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

from ziphius.checkpoint.device import pick_device
from ziphius.train.batch import Batch

T = TypeVar("T")
CPU = torch.device("cpu")
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# While rank 0 reads a corpus or learns a tokenizer the others wait in a collective, for hours where that takes hours;
# torch would give them 10 minutes on GPUs and 30 on CPUs. Whoever started the processes sees one end much sooner.
_PATIENCE = timedelta(hours=3)
_BROKEN = ("Connection closed", "Connection reset", "Broken pipe", "Socket closed", "failed to recv", "Timed out")


class PlaceError(ValueError):
    """The processes do not fit the devices: one line with the mend."""


@dataclass(frozen=True)
class Place:
    """This process's place. One process alone needs no process group.

    `dtype` is what products are made in under `autocast`: BF16, or fp32 for no casts at all.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = CPU
    dtype: torch.dtype = torch.float32

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def alone(self) -> Place:
        """The same device without the peers."""
        return replace(self, rank=0, size=1)

    # --- the device --------------------------------------------------------------------------------------------------

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def device_name(self) -> str:
        """The card's name as its maker gives it, or 'cpu'."""
        return torch.cuda.get_device_name(self.device) if self.on_gpu else self.device.type

    def computing(self, precision: str) -> Place:
        """The same place with products in `precision`, 'bf16' or 'fp32'."""
        return replace(self, dtype=_DTYPES[precision])

    def autocast(self) -> AbstractContextManager:
        """Forward passes in this place's precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def put(self, batch: Batch) -> Batch:
        """`batch` on the device. To a GPU it goes from pinned memory, beside what is computed there.

        What it adds to the divisor of the loss is counted before, where that waits for nothing.
        """
        if self.device.type == "cpu":
            return batch
        values = {field.name: getattr(batch, field.name) for field in fields(batch)}
        moved = {name: self._put(value) for name, value in values.items() if isinstance(value, Tensor)}
        return replace(batch, **moved, normaliser=batch.norm)

    def _put(self, tensor: Tensor) -> Tensor:
        if self.on_gpu and tensor.device.type == "cpu":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    def wait(self) -> None:
        """Until the device has done what it was told: before a clock is read."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def peak_memory_gib(self) -> float:
        """The most memory held at once, in GiB: by tensors on a GPU since `forget_peak`, else by this process."""
        if self.on_gpu:
            return torch.cuda.max_memory_allocated(self.device) / 2**30
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    def forget_peak(self) -> None:
        """Begin to measure the peak anew, where that can be: on a GPU."""
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)

    # --- the peers ---------------------------------------------------------------------------------------------------

    def sum_(self, tensor: Tensor) -> Tensor:
        """Add up `tensor` over all ranks, in place; the same bits on every rank."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def sum_numbers(self, values: dict[str, float]) -> dict[str, float]:
        """Add up named numbers over all ranks (every rank must bring the same names)."""
        if self.size == 1:
            return dict(values)
        total = self.sum_(torch.tensor(list(values.values()), dtype=torch.float64, device=self.device))
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


def join(device: str = "auto") -> Place:
    """This process's place on `device` ('auto', 'cpu', 'cuda' or 'cuda:N'), in the group that torchrun's environment
    describes, or alone where there is none.

    On GPUs every process has its own: that of its number on this machine, or the one that is named. Raises ValueError
    for a device that is not there, and PlaceError where a process would have none for itself.
    """
    size, rank = (int(os.environ.get(key, default)) for key, default in (("WORLD_SIZE", "1"), ("RANK", "0")))
    here = _own_device(pick_device(device), int(os.environ.get("LOCAL_RANK", "0")), size)
    if here.type == "cuda":
        torch.cuda.set_device(here)
    if size > 1 and not dist.is_initialized():  # what is no tensor goes between the processors, also beside GPUs
        dist.init_process_group("cpu:gloo,cuda:nccl" if here.type == "cuda" else "gloo", timeout=_PATIENCE)
    return Place(rank, size, here)


def _own_device(device: torch.device, local_rank: int, size: int) -> torch.device:
    """The device of the process numbered `local_rank` on this machine, among `size` processes in all."""
    if device.type != "cuda":
        return device
    if device.index is not None:
        if size > 1:
            raise PlaceError(f"device {str(device)!r} has room for one process of {size}; name it 'cuda' for one a GPU")
        return device
    if local_rank >= (there := torch.cuda.device_count()):
        raise PlaceError(
            f"process {local_rank + 1} on this machine finds {there} GPUs, one a process; start {there}, or set "
            "machine.device = 'cpu'"
        )
    return torch.device("cuda", local_rank)


def lost_peers(error: BaseException) -> bool:
    """Whether `error` only says that another process of the group has ended."""
    text = str(error)
    broken = isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in text)
    return broken and any(sign in text for sign in _BROKEN)


def leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
