"""Multi-head latent attention (V2 §2.1; V3 §2.1.1, equations 1–11).

B batch, T time, D model, H heads, N no-position part, R rope part, V value head, C latent (kv_lora_rank).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ziphius import ops
from ziphius.model.cache import StepCache
from ziphius.model.deepseek.config import DeepSeekConfig
from ziphius.model.layers import Linear, RMSNorm

LATENT_EPS = 1e-6  # the norms on the latents keep this value whatever rms_norm_eps says, as in DeepSeek's own code


class LatentAttention(nn.Module):
    """Keys and values are decompressed from one latent per token; the cache keeps only that and the rope key."""

    def __init__(self, config: DeepSeekConfig) -> None:
        super().__init__()
        self.config = config
        self.scale = config.softmax_scale
        heads, qk = config.num_attention_heads, config.qk_head_dim
        if config.q_lora_rank is None:
            self.q_proj = Linear(config.hidden_size, heads * qk)
        else:
            self.q_a_proj = Linear(config.hidden_size, config.q_lora_rank)
            self.q_a_layernorm = RMSNorm(config.q_lora_rank, LATENT_EPS)
            self.q_b_proj = Linear(config.q_lora_rank, heads * qk)
        self.kv_a_proj_with_mqa = Linear(config.hidden_size, config.kv_lora_rank + config.qk_rope_head_dim)
        self.kv_a_layernorm = RMSNorm(config.kv_lora_rank, LATENT_EPS)
        self.kv_b_proj = Linear(config.kv_lora_rank, heads * (config.qk_nope_head_dim + config.v_head_dim))
        self.o_proj = Linear(heads * config.v_head_dim, config.hidden_size)

    def forward(self, x_BTD: Tensor, cos: Tensor, sin: Tensor, segments_BT: Tensor | None = None) -> Tensor:
        """Naive form, for training: keys and values are expanded per head. cos, sin [B or 1, T, R/2]."""
        config = self.config
        latent, k_rope = self.kv_a_proj_with_mqa(x_BTD).split([config.kv_lora_rank, config.qk_rope_head_dim], dim=-1)
        kv = self.kv_b_proj(self.kv_a_layernorm(latent)).unflatten(-1, (config.num_attention_heads, -1))
        q = self._unrotated_queries(x_BTD)
        out = ops.latent_attention(q, kv, k_rope, cos, sin, self.scale, segments_BT)
        return self.o_proj(out.flatten(2))

    def queries(self, x_BTD: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """q_nope [B, T, H, N] and rotated q_rope [B, T, H, R] (equations 6–9)."""
        config = self.config
        q = self._unrotated_queries(x_BTD)
        q_nope, q_rope = q.split([config.qk_nope_head_dim, config.qk_rope_head_dim], dim=-1)
        return q_nope, ops.apply_rope(q_rope, cos.unsqueeze(2), sin.unsqueeze(2))

    def _unrotated_queries(self, x_BTD: Tensor) -> Tensor:
        """[B, T, H, N + R], the rope part last."""
        config = self.config
        q = (
            self.q_proj(x_BTD)
            if config.q_lora_rank is None
            else self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x_BTD)))
        )
        return q.unflatten(-1, (config.num_attention_heads, config.qk_head_dim))

    def latents(self, x_BTD: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """What the cache holds: the normalised latent [B, T, C] and the rotated shared key [B, T, R] (1 and 3)."""
        config = self.config
        latent, k_rope = self.kv_a_proj_with_mqa(x_BTD).split([config.kv_lora_rank, config.qk_rope_head_dim], dim=-1)
        return self.kv_a_layernorm(latent), ops.apply_rope(k_rope, cos, sin)

    def cached(self, x_BTD: Tensor, cos: Tensor, sin: Tensor, cache: StepCache, layer: int) -> Tensor:
        """Absorbed form, for decoding: attend to the cached [latent; rope key] themselves, X = C + R.

        W_UK is folded into the query and W_UV into the output (V2 §2.1.2), so nothing is expanded per cached token.
        """
        config = self.config
        B, T, _ = x_BTD.shape
        latent, k_rope = self.latents(x_BTD, cos, sin)
        q_nope, q_rope = (q.flatten(0, 1) for q in self.queries(x_BTD, cos, sin))
        up_HXC = self.kv_b_proj.weight.to(q_nope.dtype).view(config.num_attention_heads, -1, config.kv_lora_rank)
        w_uk_HNC, w_uv_HVC = up_HXC.split([config.qk_nope_head_dim, config.v_head_dim], dim=1)
        q_latent = torch.bmm(q_nope.transpose(0, 1), w_uk_HNC).transpose(0, 1)
        q = torch.cat([q_latent, q_rope], dim=-1)
        entries = torch.cat([latent, k_rope], dim=-1).flatten(0, 1)
        mixed = cache.attend(layer, q, entries, config.softmax_scale)
        out = torch.bmm(mixed.transpose(0, 1), w_uv_HVC.transpose(1, 2)).transpose(0, 1)
        return self.o_proj(out.reshape(B, T, -1))
