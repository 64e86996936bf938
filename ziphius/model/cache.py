"""What attention remembers while decoding: one latent and one rope key per token and layer (V2 §2.1, table 1)."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class LatentCache(Protocol):
    """The network's view of a cache; `ziphius.engine` provides the memory behind it.

    B batch, T new tokens, S tokens visible, X = kv_lora_rank + qk_rope_head_dim.
    """

    def update(self, layer: int, latent_BTC: Tensor, k_rope_BTR: Tensor) -> Tensor:
        """Store this step's entries of `layer` and return everything visible, [B, S, X]."""
        ...

    @property
    def mask_BTS(self) -> Tensor:
        """Additive mask of this step: −inf on entries that a query may not see."""
        ...
