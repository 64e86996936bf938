"""Multi-token prediction (V3 §2.2, equations 21–25)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ziphius.model.cache import StepCache
from ziphius.model.config import ModelConfig
from ziphius.model.experts import RouterStats
from ziphius.model.layers import Linear, RMSNorm


class MTPModule(nn.Module):
    """One prediction depth: h' = norm(block(M·[RMSNorm(Emb(t_next)); RMSNorm(h)])).

    The paper writes [h; Emb]; the published weights of `eh_proj` take the embedding first, and so does this. `h` is
    the previous depth's state after its final norm, as the published servers feed it.
    """

    def __init__(self, config: ModelConfig, block: nn.Module) -> None:
        super().__init__()
        self.enorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.hnorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.eh_proj = Linear(2 * config.hidden_size, config.hidden_size)
        self.block = block
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        hidden_BTD: Tensor,
        embedded_BTD: Tensor,
        cos: Tensor,
        sin: Tensor,
        segments_BT: Tensor | None = None,
        cache: StepCache | None = None,
        stats: RouterStats | None = None,
    ) -> Tensor:
        joined = self.join(hidden_BTD, embedded_BTD)
        return self.norm(self.block(joined, cos, sin, segments_BT, cache, stats))

    def join(self, hidden: Tensor, embedded: Tensor) -> Tensor:
        """What enters the block, [..., D] (equation 21)."""
        return self.eh_proj(torch.cat([self.enorm(embedded), self.hnorm(hidden)], dim=-1))
