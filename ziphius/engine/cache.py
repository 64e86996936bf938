"""The latent cache of a batch that decodes in step: one slab per layer, rows padded on the left.

L layers, B rows, S columns, T new tokens, X = kv_lora_rank + qk_rope_head_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ziphius.model.config import ModelConfig


class SlabCache:
    """Memory of `columns` tokens for each of `rows` sequences; all rows advance together.

    `padding` [B] counts the empty columns at the left of each row. Source: V2 §2.1.3 (what is cached per token).
    """

    def __init__(self, config: ModelConfig, padding: Tensor, columns: int, dtype: torch.dtype) -> None:
        width = config.kv_lora_rank + config.qk_rope_head_dim
        shape = (config.num_hidden_layers, padding.shape[0], columns, width)
        self.memory = torch.zeros(shape, dtype=dtype, device=padding.device)
        self.padding = padding
        self.length = 0
        self._mask = torch.empty(0)

    def advance(self, tokens: int) -> Tensor:
        """Make room for `tokens` more columns; returns their positions [B, T] (0 on padding)."""
        start, self.length = self.length, self.length + tokens
        if self.length > self.memory.shape[2]:
            raise ValueError(f"the cache holds {self.memory.shape[2]} tokens a row, {self.length} were asked for")
        columns = torch.arange(self.length, device=self.padding.device)
        query = columns[start:]
        seen = (columns <= query.unsqueeze(1)) & (columns >= self.padding.view(-1, 1, 1))
        own = columns == query.unsqueeze(1)  # padding sees itself, so that no row is masked whole
        self._mask = torch.zeros(seen.shape, dtype=torch.float32, device=columns.device)
        self._mask.masked_fill_(~(seen | own), float("-inf"))
        self._start = start
        return (query - self.padding.unsqueeze(1)).clamp(min=0)

    @property
    def mask_BTS(self) -> Tensor:
        return self._mask

    def update(self, layer: int, latent_BTC: Tensor, k_rope_BTR: Tensor) -> Tensor:
        slab = self.memory[layer, :, : self.length]
        rank = latent_BTC.shape[-1]
        slab[:, self._start :, :rank] = latent_BTC
        slab[:, self._start :, rank:] = k_rope_BTR
        return slab

    def select(self, rows: Tensor) -> None:
        """Keep (or repeat) `rows`, int64 indices, in this order."""
        self.memory = self.memory.index_select(1, rows)
        self.padding = self.padding.index_select(0, rows)
