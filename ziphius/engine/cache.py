"""The memory behind decoding: entries of many sequences in blocks, found through tables.

L layers, S slots, N tokens of a step, H heads, K key, X the width of an entry (`ModelConfig.cache_layout`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ziphius.model.config import ModelConfig
from ziphius.ops.paged import paged_attention
from ziphius.ops.placement import Placement

_ALIGNMENT = 64  # bytes, a cache line


class PagedMemory:
    """Entries of every layer, the prediction modules' included: `data` [L, (blocks + 1) · block_size, X].

    Who owns which block is its user's business; the last one, `spare`, is nobody's: tokens that only fill up a step
    stand there.
    """

    def __init__(
        self,
        config: ModelConfig,
        blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device | str | None = None,
    ) -> None:
        layers = config.num_hidden_layers + config.num_nextn_predict_layers
        self.block_size, self.layout, self.spare = block_size, config.cache_layout, blocks
        # zeros, for what is never seen is still multiplied by zero
        self.data = _zeros((layers, (blocks + 1) * block_size, self.layout.width), dtype, torch.device(device or "cpu"))

    def clear_blocks(self, blocks: Sequence[int]) -> None:
        """Back to zeros in every layer."""
        self.data.view(len(self.data), -1, self.block_size * self.data.shape[2])[:, list(blocks)] = 0

    def copy_blocks(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy blocks of every layer, as when shared ones are about to be written."""
        blocks = self.data.view(len(self.data), -1, self.block_size * self.data.shape[2])
        blocks[:, list(targets)] = blocks[:, list(sources)]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros that take up memory only where they are written, on a CPU: numpy leaves that to the system."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    size = math.prod(shape) * dtype.itemsize
    raw = np.zeros(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return torch.from_numpy(raw[start : start + size]).view(dtype).view(shape)


class PlacedCache:
    """A `StepCache`: the tokens of `placement` in `memory`."""

    def __init__(self, memory: PagedMemory, placement: Placement) -> None:
        self.memory, self.placement = memory, placement

    def attend(self, layer: int, q_NHK: Tensor, entries_NX: Tensor, scale: float) -> Tensor:
        memory_SX = self.memory.data[layer]
        memory_SX[self.placement.slots_N] = entries_NX.to(memory_SX.dtype)
        return paged_attention(q_NHK, memory_SX, self.placement, self.memory.layout, scale)
