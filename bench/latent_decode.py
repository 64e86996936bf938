"""Decoding attention over the paged latent cache on a GPU: the Triton kernel's share of the memory's speed.

One layer and one token of each sequence, in bf16: 128 heads (DeepSeek-V3) and 16 (V2-Lite) over latents of 512 + 64,
and the network of recipes/r1-cpu.toml. The bytes that must be read are those of the latents; over the median time they
are held against what a large copy and a large sum move. Beside it torch's `scaled_dot_product_attention` on the
expanded cache, keys and values of every head, where that fits the card. Both sides are played from CUDA graphs, as in
the engine, with the L2 cache cleared in between; the kernel's results are first held to those of the torch form.

    python bench/latent_decode.py               # needs a GPU; about 2 minutes
    python bench/latent_decode.py --quick       # the ends of each range
    python bench/latent_decode.py --tune        # other cuts of the work, beside the one chosen

Writes bench/results/latent_decode-GPU.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from common import arguments, console, place_of, reason, write_results
from rich.table import Table
from torch import Tensor

from ziphius import ops
from ziphius.engine.graphs import CudaRecorder
from ziphius.model.config import CacheLayout
from ziphius.ops import triton
from ziphius.ops.paged import paged_attention
from ziphius.ops.placement import Placement

DEVICE = "cuda"
GOAL = 0.7  # of the memory's speed
BLOCK = 16  # tokens of a block, as the engine has it
TOLERANCE = 0.02  # of the largest entry, bf16 against bf16


@dataclass(frozen=True)
class Shape:
    """Heads, latent, rope part, and a head's no-position key and value."""

    name: str
    heads: int
    rank: int
    rope: int
    nope: int
    value: int

    def latent_bytes(self, batch: int, context: int) -> int:
        return batch * context * (self.rank + self.rope) * 2

    def expanded_bytes(self, batch: int, context: int) -> int:
        return batch * context * self.heads * (self.nope + self.rope + self.value) * 2


SHAPES = [
    Shape("V3", 128, 512, 64, 128, 128),
    Shape("V2-Lite", 16, 512, 64, 128, 128),
    Shape("recipe", 4, 96, 16, 32, 32),
]
CONTEXTS, BATCHES = (1024, 4096, 16384, 32768), (1, 8, 32, 128)


@dataclass
class Problem:
    """A step of one token a sequence, all of the same length, their blocks scattered over the memory."""

    q_NHX: Tensor
    memory_SX: Tensor
    placement: Placement
    layout: CacheLayout

    @classmethod
    def of(cls, shape: Shape, batch: int, context: int) -> Problem:
        blocks = -(-context // BLOCK)
        width = shape.rank + shape.rope
        make = partial(torch.randn, dtype=torch.bfloat16, device=DEVICE)
        tables = torch.randperm(batch * blocks, device=DEVICE).view(batch, blocks).int()
        rows = torch.arange(batch, dtype=torch.int32, device=DEVICE)
        positions = torch.full((batch,), context - 1, device=DEVICE)
        placement = Placement.of(rows, positions, tables, BLOCK)
        placement.most = 1
        return cls(
            make(batch, shape.heads, width),
            make(batch * blocks * BLOCK, width),
            placement,
            CacheLayout(1, width, shape.rank, 0),
        )

    def attend(self) -> Tensor:
        return paged_attention(self.q_NHX, self.memory_SX, self.placement, self.layout, 0.05)

    def error(self) -> float:
        """Largest difference from the torch form, as a share of its largest entry."""
        ours = self.attend().float()
        with ops.backend("torch"):
            expected = self.attend().float()
        return float((ours - expected).abs().max() / expected.abs().max())


def seconds(work: Callable[[], object]) -> float:
    """Median time of a recording of `work`, each time from memory."""
    from triton.testing import do_bench

    play = CudaRecorder(torch.device("cuda", torch.cuda.current_device()))(lambda: (work(), None)[1])
    return do_bench(play, warmup=10, rep=100, return_mode="median") / 1e3


def memory_speed(quick: bool) -> dict[str, float]:
    """Bytes per second: those that a large copy reads and writes, and those that a large sum reads."""
    source = torch.ones(2**27 if quick else 2**29, device=DEVICE)
    target = torch.empty_like(source)
    size = source.numel() * 4
    return {"copy": 2 * size / seconds(lambda: target.copy_(source)), "sum": size / seconds(lambda: source.sum())}


def expanded_seconds(shape: Shape, batch: int, context: int) -> float | str:
    """Time of torch's attention on keys and values of all heads; why not, where there is none."""
    need, free = shape.expanded_bytes(batch, context), torch.cuda.mem_get_info()[0]
    if 1.2 * need > free:
        return f"does not fit: {need / 1e9:.0f} GB"
    make = partial(torch.randn, dtype=torch.bfloat16, device=DEVICE)
    width = shape.nope + shape.rope
    q, k = (make(batch, shape.heads, length, width) for length in (1, context))
    v = make(batch, shape.heads, context, shape.value)
    try:
        return seconds(lambda: F.scaled_dot_product_attention(q, k, v))
    except RuntimeError as error:
        return reason(error)


def cases(quick: bool) -> Iterator[tuple[Shape, int, int]]:
    contexts, batches = ((x[0], x[-1]) if quick else x for x in (CONTEXTS, BATCHES))
    yield from product(SHAPES, contexts, batches)


def run_case(shape: Shape, context: int, batch: int, speed: float) -> dict[str, Any]:
    row: dict[str, Any] = {"shape": shape.name, "context": context, "batch": batch}
    problem = Problem.of(shape, batch, context)
    row["error"] = problem.error()
    assert row["error"] <= TOLERANCE, f"{row}: the kernel is wrong"
    row["seconds"] = seconds(problem.attend)
    row["bytes_per_second"] = shape.latent_bytes(batch, context) / row["seconds"]
    row["share"] = row["bytes_per_second"] / speed
    del problem
    torch.cuda.empty_cache()
    row["expanded_seconds"] = expanded_seconds(shape, batch, context)
    torch.cuda.empty_cache()
    return row


def show(rows: list[dict[str, Any]]) -> None:
    table = Table()
    for name in ("shape", "context", "batch", "µs", "GB/s of latents", "share of memory", "SDPA, expanded", "ratio"):
        table.add_column(name, justify="left" if name == "shape" else "right")
    for row in rows:
        peer = row["expanded_seconds"]
        cells = [f"{peer * 1e6:,.0f} µs", f"{peer / row['seconds']:.1f}x"] if isinstance(peer, float) else [peer, ""]
        mine = [f"{row['seconds'] * 1e6:,.1f}", f"{row['bytes_per_second'] / 1e9:,.0f}", f"{row['share']:.0%}"]
        table.add_row(row["shape"], f"{row['context']:,}", str(row["batch"]), *mine, *cells)
    console.print(table)


def tune(speed: float) -> list[dict[str, Any]]:
    """Shares of the memory's speed with other tiles, at 32 sequences of 8K."""
    from ziphius.ops.triton.paged import Tiles, latent_decode, tiles_for

    rows: list[dict[str, Any]] = []
    for shape in SHAPES:
        problem = Problem.of(shape, 32, 8192)
        attend = partial(latent_decode, problem.q_NHX, problem.memory_SX, problem.placement, shape.rank, 0.05)
        chosen = tiles_for(problem.q_NHX, problem.memory_SX, shape.rank)
        for tiles in (Tiles(*t) for t in product((16, 32, 64), (16, 32, 64), (4, 8), (2, 3, 4))):
            if tiles.heads >= 2 * max(16, shape.heads):
                continue
            row: dict[str, Any] = {"shape": shape.name, "tiles": asdict(tiles), "chosen": tiles == chosen}
            try:
                row["share"] = shape.latent_bytes(32, 8192) / seconds(partial(attend, tiles)) / speed
            except Exception as error:  # more shared memory than there is, say
                row["failed"] = reason(error)
            rows.append(row)
        best = sorted((r for r in rows if r["shape"] == shape.name and "share" in r), key=lambda r: -r["share"])
        for row in [*best[:5], *(r for r in best[5:] if r["chosen"])]:
            console.print(f"{shape.name:8} {row['tiles']} {row['share']:.0%}{' (chosen)' if row['chosen'] else ''}")
    return rows


def main() -> None:
    parser = arguments(__doc__, device="cuda")
    parser.add_argument("--tune", action="store_true", help="try other cuts of the work instead")
    options: argparse.Namespace = parser.parse_args()
    place = place_of(options)  # and from here on the current device is the one that is named
    if not place.on_gpu:
        sys.exit("bench/latent_decode.py measures a GPU: give --device cuda")
    if triton.why_not() is not None:
        sys.exit(f"bench/latent_decode.py measures a Triton kernel, and {triton.why_not()}")
    torch.manual_seed(options.seed)
    limits = memory_speed(options.quick)
    speed = max(limits.values())
    console.print(f"{place.device_name}: copy {limits['copy'] / 1e9:,.0f} GB/s, sum {limits['sum'] / 1e9:,.0f} GB/s")
    if options.tune:
        write_results("latent_decode_tiles", options, {"limits": limits, "rows": tune(speed)})
        return
    rows = [run_case(shape, context, batch, speed) for shape, context, batch in cases(options.quick)]
    show(rows)
    best = max(rows, key=lambda row: row["share"])
    verdict = "met" if best["share"] >= GOAL else "missed"
    where = f"{best['shape']}, {best['context']:,} tokens, batch {best['batch']}"
    console.print(f"Best share of the memory's speed: {best['share']:.0%} ({where}); goal {GOAL:.0%}: {verdict}")
    write_results("latent_decode", options, {"limits": limits, "goal": GOAL, "rows": rows})


if __name__ == "__main__":
    main()
