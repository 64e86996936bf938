"""How long one device takes for one operation: matrix products, attention, streams of bytes. A roofline per kernel.

Fill of the tensor cores: a product's output is cut into tiles, tiles are dealt to the chip's units in waves, and each
tile spends a fixed time on its way in and out. Held to the sizes that DeepGEMM publishes for H800 (tests/cost).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

from ziphius.cost.rows import Accelerator, Software

BYTES = {"bf16": 2.0, "fp8": 1.0, "fp4": 0.5}
MEMORY_SHARE = 0.85  # of the bandwidth on the data sheet; DeepGEMM's largest memory-bound product on H800
LINK_SHARE = 0.80  # 160 of H800's 200 GB/s NVLink, 40 of 50 GB/s InfiniBand (arXiv 2505.09343 §4); DeepEP on B200
TILE_DEPTH_BYTES = 650.0  # what a tile's prologue and epilogue cost, as bytes of depth: DeepGEMM at K = 512 … 16,384
SUSTAINED = (
    0.91  # of a product's or attention's speed on its own that hours of training keep (power, clocks, real data)
)
LAUNCH_SECONDS = 3e-6  # of a kernel that waits for the one before: DeepGEMM at M = 64
PLAIN_FLASH = (0.37, 0.31)  # of an H100's peak, forward and backward: FlashAttention-2 (arXiv 2407.08608)
_TILES = ((128, 256, 1.0), (256, 128, 1.0), (128, 128, 0.97), (128, 64, 0.85), (64, 128, 0.85), (64, 64, 0.7))


@dataclass(frozen=True)
class Machine:
    """One accelerator with the software of a time. `watts` caps its power; `sustained` scales what kernels reach."""

    accelerator: Accelerator
    software: Software
    watts: float | None = None
    sustained: float = 1.0

    def __hash__(self) -> int:  # one machine a plan: identity is enough for the caches
        return id(self)

    def with_deepseek_kernels(self) -> Machine:
        """The machine driven by DeepSeek's own kernels, ahead of their time in routing (DeepEP, DeepGEMM)."""
        ahead = {
            "all_to_all": 1.0,
            "deduplicated": 1.0,
            "routing_traffic": 6.0,
            "traffic": min(1.2, self.software.traffic),
        }
        return replace(self, software=self.software.model_copy(update=ahead))

    def peak(self, precision: str) -> float:
        """Dense FLOP/s on the data sheet. Raises ValueError where the device has no such precision."""
        tflops = getattr(self.accelerator, f"{precision}_tflops")
        if tflops is None:
            raise ValueError(f"{self.accelerator.name} has no {precision} arithmetic; use --precision bf16")
        return tflops * 1e12

    def reached(self, precision: str) -> float:
        """FLOP/s of the best product measured."""
        self.peak(precision)
        return (getattr(self.accelerator, f"{precision}_reached") or 0.7 * self.peak(precision) / 1e12) * 1e12

    @cached_property
    def pace(self) -> float:
        """Share of the kernels' best speed: clocks fall with the root of the power left above the idle fifth."""
        full = self.accelerator.watts
        capped = min(self.watts or full, full)
        return self.sustained * math.sqrt(max(capped - 0.2 * full, 0.01 * full) / (0.8 * full))

    @property
    def memory_bytes_per_second(self) -> float:
        return self.accelerator.memory_tb_s * 1e12 * MEMORY_SHARE

    def nvlink(self) -> float:
        """Bytes per second, one way, that a device moves within its NVLink domain."""
        return (self.accelerator.nvlink_gb_s or self.accelerator.nic_gb_s) * 1e9 * LINK_SHARE

    def nic(self) -> float:
        """Bytes per second, one way, that a device moves between domains."""
        return self.accelerator.nic_gb_s * 1e9 * LINK_SHARE

    @lru_cache(maxsize=4096)  # noqa: B019 - machines live as long as a plan
    def gemm(
        self, m: float, n: float, k: float, precision: str = "bf16", groups: int = 1, out_bytes: float = 2.0
    ) -> float:
        """`groups` products of [m, k] by [k, n]; `out_bytes` are moved per element of the result.

        The longer of arithmetic (filled tiles of the reached rate) and memory traffic.
        """
        width = BYTES[precision]
        depth = k / (k + TILE_DEPTH_BYTES / width)
        fill = max(weight * _fill(m, n, groups, tile, self.accelerator.units) for *tile, weight in _TILES)
        arithmetic = 2 * m * n * k * groups / (self.reached(precision) * self.pace * depth * fill)
        traffic = groups * ((m + n) * k * width + m * n * out_bytes) / self.memory_bytes_per_second
        return max(arithmetic, traffic) + LAUNCH_SECONDS

    def attention(
        self, flops: float, context: float, head_dim: int, backward: bool = False, plain: bool = False
    ) -> float:
        """Flash attention of `flops` (only what the mask leaves) over sequences of 2 · `context` tokens.

        `plain`: by PyTorch's own kernels, which stayed at FlashAttention-2.
        """
        shares = self.software.flash_backward if backward else self.software.flash_forward
        half = 900 if backward else 500  # tokens at which half the rate is reached: FlashAttention-3, figures 5 and 6
        best = shares[self.accelerator.architecture]
        if plain:
            best = min(best, PLAIN_FLASH[backward])
        narrow = 0.75 if head_dim <= 64 else 1.0
        return flops / (self.peak("bf16") * self.pace * best * narrow * 2 * context / (2 * context + half))

    def stream(self, amount: float) -> float:
        """Elementwise kernels that would move `amount` bytes at least."""
        return amount * self.software.traffic / self.memory_bytes_per_second


def _fill(m: float, n: float, groups: int, tile: list[int], units: int) -> float:
    """Useful share of the tensor cores' time: padding of the edge tiles, and the last wave of tiles."""
    rows, columns = math.ceil(m / tile[0]), math.ceil(n / tile[1])
    waves = groups * rows * columns / units
    return m * n / (rows * tile[0] * columns * tile[1]) * waves / math.ceil(waves)
