"""The angles of the rotary positions, with YaRN (Peng et al. 2023, arXiv 2309.00071)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ziphius.model.config import ModelConfig, RopeScaling, yarn_mscale


def rope_table(config: ModelConfig, length: int, device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
    """cos and sin of every angle, fp32, each [length, qk_rope_head_dim / 2].

    Under YaRN both carry the factor mscale(mscale)/mscale(mscale_all_dim), which is 1 in the published models.
    """
    half = torch.arange(0, config.qk_rope_head_dim, 2, dtype=torch.float32, device=device)
    frequency = 1.0 / config.rope_theta ** (half / config.qk_rope_head_dim)
    magnitude = 1.0
    scaling = config.rope_scaling
    if scaling is not None:
        frequency = _yarn_frequency(frequency, config, scaling)
        magnitude = yarn_mscale(scaling.factor, scaling.mscale) / yarn_mscale(scaling.factor, scaling.mscale_all_dim)
    angle = torch.outer(torch.arange(length, dtype=torch.float32, device=device), frequency)
    return angle.cos() * magnitude, angle.sin() * magnitude


def _yarn_frequency(frequency: Tensor, config: ModelConfig, scaling: RopeScaling) -> Tensor:
    """Divide slow frequencies by the factor, keep fast ones, ramp linearly between (V3's inference/model.py)."""
    dim, trained = config.qk_rope_head_dim, scaling.original_max_position_embeddings

    def pair_turning(rotations: float) -> float:
        """Index of the rotary dimension that turns `rotations` times over the trained length."""
        return dim * math.log(trained / (rotations * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    low = max(math.floor(pair_turning(scaling.beta_fast)), 0)
    high = min(math.ceil(pair_turning(scaling.beta_slow)), dim - 1)
    index = torch.arange(dim // 2, dtype=torch.float32, device=frequency.device)
    slow = ((index - low) / max(high - low, 0.001)).clamp(0, 1)
    return frequency / scaling.factor * slow + frequency * (1 - slow)
