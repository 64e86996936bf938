"""How a model is spread over devices: the axes, and the refusals of layouts that do not divide."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal, get_args

from ziphius.cost.shape import Shape

Schedule = Literal["1f1b", "zb1p", "dualpipe"]
Recompute = Literal["none", "selective", "full"]
SCHEDULES: tuple[str, ...] = get_args(Schedule)
RECOMPUTES: tuple[str, ...] = get_args(Recompute)


@dataclass(frozen=True)
class Layout:
    """Tensor, context, pipeline, virtual-pipeline and expert parallel widths; ZeRO stage; sequences a microbatch.

    Data parallelism takes the rest of the devices; a `dp` that is given must be that. Experts are spread over `ep` of
    the devices of one pipeline stage.
    """

    tp: int = 1
    cp: int = 1
    pp: int = 1
    vpp: int = 1
    ep: int = 1
    zero: int = 1
    microbatch: int = 1
    schedule: Schedule = "1f1b"
    recompute: Recompute = "selective"
    dp: int | None = None

    def data_parallel(self, gpus: int) -> int:
        """Replicas of the model. Raises ValueError where the axes do not divide `gpus`."""
        width = self.tp * self.cp * self.pp
        if gpus % width:
            raise ValueError(f"{gpus} GPUs do not divide by {self.axes()}: tp·cp·pp is {width}; use a multiple of it")
        if self.dp is not None and self.dp * width != gpus:
            raise ValueError(f"dp{self.dp} with {self.axes()} takes {self.dp * width} GPUs, not {gpus}; leave dp out")
        return gpus // width

    def microbatches(self, gpus: int, batch: int) -> int:
        """Microbatches a replica and step. Raises ValueError where the batch does not divide."""
        replicas = self.data_parallel(gpus)
        if batch % (replicas * self.microbatch):
            raise ValueError(
                f"a batch of {batch} sequences does not divide by {replicas} replicas × {self.microbatch} each; "
                f"use a multiple of {replicas * self.microbatch} (--batch)"
            )
        return batch // (replicas * self.microbatch)

    def check(self, shape: Shape, gpus: int, batch: int) -> None:
        """Raises ValueError, naming the axis and the mend, where the layout cannot hold `shape`."""
        replicas = self.data_parallel(gpus)
        if shape.heads % self.tp:
            raise ValueError(f"tp{self.tp} does not divide the {shape.heads} heads; use a divisor")
        if self.pp * self.vpp > shape.layers + shape.mtp_layers:
            raise ValueError(f"pp{self.pp} × vpp{self.vpp} is more than the {shape.layers} layers; use less")
        if self.ep > 1 and not shape.experts:
            raise ValueError(f"ep{self.ep}: the model has no experts; leave ep out")
        if shape.experts and shape.experts % self.ep:
            raise ValueError(f"ep{self.ep} does not divide the {shape.experts} experts; use a divisor")
        inside = replicas * self.tp * self.cp
        if inside % self.ep:
            raise ValueError(f"ep{self.ep} does not divide the {inside} GPUs of one pipeline stage; use a divisor")
        count = self.microbatches(gpus, batch)
        if self.schedule == "dualpipe" and (self.pp % 2 or count < 2 * self.pp or self.pp < 4):
            raise ValueError(
                f"dualpipe needs an even pp of at least 4 and 2·pp microbatches; pp is {self.pp} with {count} "
                f"microbatches: raise --batch to {2 * self.pp * replicas * self.microbatch}, or use 1f1b"
            )

    def axes(self) -> str:
        """The layout as `--parallel` reads it, axes of width 1 left out."""
        named = {"tp": self.tp, "cp": self.cp, "pp": self.pp, "vpp": self.vpp, "ep": self.ep}
        return ",".join([f"{name}{width}" for name, width in named.items() if width > 1] + [f"zero{self.zero}"])


def parse_layout(text: str, **others: object) -> Layout:
    """Read `pp16,ep64,zero1`; fsdp is zero3, vp is vpp. Raises ValueError naming the part that is no axis."""
    found: dict[str, int] = {}
    for part in filter(None, re.split(r"[,\s]+", text.strip().lower())):
        plain = "zero3" if part == "fsdp" else re.sub(r"^vp(?=\d)", "vpp", part)
        match = re.fullmatch(r"(tp|cp|pp|vpp|ep|dp|zero|mbs)(\d+)", plain)
        if not match:
            raise ValueError(
                f"--parallel: {part!r} is no axis; write such as pp16,ep64,zero1 (tp, cp, pp, vpp, ep, dp, zero, mbs)"
            )
        axis = "microbatch" if match[1] == "mbs" else match[1]
        if axis in found:
            raise ValueError(f"--parallel: {match[1]} is given twice")
        found[axis] = int(match[2])
        if found[axis] < (0 if axis == "zero" else 1) or (axis == "zero" and found[axis] > 3):
            raise ValueError(f"--parallel: {part} is out of range (widths from 1, zero from 0 to 3)")
    return replace(Layout(**others), **found)  # type: ignore[arg-type]
