"""What attention remembers while decoding: one latent and one rope key per token and layer (V2 §2.1, table 1)."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class LatentCache(Protocol):
    """The network's view of a cache during one step; `ziphius.engine` provides the memory behind it.

    N tokens of the step over all sequences, H heads, C = kv_lora_rank, R rope part, X = C + R.
    """

    def attend(self, layer: int, q_NHX: Tensor, latent_NC: Tensor, k_rope_NR: Tensor, scale: float) -> Tensor:
        """Store the step's entries of `layer`, then attend: each to its own sequence up to itself -> [N, H, C]."""
        ...
