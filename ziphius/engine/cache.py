"""The latent cache of a batch that decodes in step: one slab per layer, rows padded on the left.

L layers, B rows, S columns, T new tokens, X = kv_lora_rank + qk_rope_head_dim.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ziphius.model.config import ModelConfig

# Memory grows by this many columns at a time: what attention reads stays contiguous, and its shapes few (a CPU library
# compiles a kernel for each new one).
_ROUND = 32


class SlabCache:
    """Memory of at least `columns` tokens for each of `rows` sequences; all rows advance together.

    `padding` [B] counts the empty columns at the left of each row; columns not yet written are masked. Source: V2
    §2.1.3 (what is cached per token).
    """

    def __init__(self, config: ModelConfig, padding: Tensor, columns: int, dtype: torch.dtype) -> None:
        width = config.kv_lora_rank + config.qk_rope_head_dim
        shape = (config.num_hidden_layers, padding.shape[0], 0, width)
        self.memory = torch.zeros(shape, dtype=dtype, device=padding.device)
        self.columns, self.padding = columns, padding
        self.length = 0
        self._mask = torch.empty(0)

    def advance(self, tokens: int) -> Tensor:
        """Make room for `tokens` more columns; returns their positions [B, T] (0 on padding)."""
        start, self.length = self.length, self.length + tokens
        if self.length > self.columns:
            raise ValueError(f"the cache holds {self.columns} tokens a row, {self.length} were asked for")
        if self.length > self.memory.shape[2]:
            grown = -(-self.length // _ROUND) * _ROUND
            self.memory = F.pad(self.memory, (0, 0, 0, grown - self.memory.shape[2]))
        columns = torch.arange(self.memory.shape[2], device=self.padding.device)
        query = columns[start : self.length]
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
        rank = latent_BTC.shape[-1]
        new = self.memory[layer, :, self._start : self.length]
        new[..., :rank] = latent_BTC
        new[..., rank:] = k_rope_BTR
        return self.memory[layer]

    def select(self, rows: Tensor) -> None:
        """Keep (or repeat) `rows`, int64 indices, in this order."""
        self.memory = self.memory.index_select(1, rows)
        self.padding = self.padding.index_select(0, rows)
