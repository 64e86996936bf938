"""Grouped-query attention (Ainslie et al. 2023, arXiv 2305.13245), with the biases or norms that a family adds.

B batch, T time, D model, H heads, G heads of keys and values, K head dim, N tokens of a step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ziphius import ops
from ziphius.model.cache import StepCache
from ziphius.model.grouped.config import GroupedConfig
from ziphius.model.layers import Linear, RMSNorm


class GroupedAttention(nn.Module):
    """H queries a token attend to G keys and values; the cache keeps those, rotated and as they are."""

    def __init__(self, config: GroupedConfig) -> None:
        super().__init__()
        self.config = config
        self.scale = config.softmax_scale
        D, K, bias = config.hidden_size, config.head_dim, config.qkv_bias
        self.q_proj = Linear(D, config.num_attention_heads * K, bias)
        self.k_proj = Linear(D, config.num_key_value_heads * K, bias)
        self.v_proj = Linear(D, config.num_key_value_heads * K, bias)
        self.o_proj = Linear(config.num_attention_heads * K, D)
        if config.qk_norm:
            self.q_norm = RMSNorm(K, config.rms_norm_eps)
            self.k_norm = RMSNorm(K, config.rms_norm_eps)

    def forward(self, x_BTD: Tensor, cos: Tensor, sin: Tensor, segments_BT: Tensor | None = None) -> Tensor:
        """For training, over whole rows. cos, sin [B or 1, T, K/2]."""
        q, k, v = self._heads(x_BTD)
        out = ops.grouped_attention(q, k, v, cos, sin, self.scale, segments_BT)
        return self.o_proj(out.flatten(2))

    def cached(self, x_BTD: Tensor, cos: Tensor, sin: Tensor, cache: StepCache, layer: int) -> Tensor:
        """For decoding, over what the cache holds."""
        q, k, v = self._heads(x_BTD)
        q, k = (ops.apply_rope(x, cos.unsqueeze(2), sin.unsqueeze(2), interleaved=False) for x in (q, k))
        entries = torch.cat([k.flatten(2), v.flatten(2)], dim=-1)
        out = cache.attend(layer, q.flatten(0, 1), entries.flatten(0, 1), self.config.softmax_scale)
        return self.o_proj(out.view(*x_BTD.shape[:2], -1))

    def _heads(self, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Unrotated queries [B, T, H, K], keys and values [B, T, G, K]."""
        K = self.config.head_dim
        q, k, v = (proj(x_BTD).unflatten(-1, (-1, K)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        return (self.q_norm(q), self.k_norm(k), v) if self.config.qk_norm else (q, k, v)
