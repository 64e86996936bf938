"""The angles of the rotary positions, and how they are stretched."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ziphius.model.config import ModelConfig
from ziphius.model.scaling import LinearScaling, Llama3Scaling, YarnScaling


def rope_table(config: ModelConfig, length: int, device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
    """cos and sin of every angle, fp32, each [length, rope_dim / 2]. Under YaRN both carry its `magnitude`."""
    half = torch.arange(0, config.rope_dim, 2, dtype=torch.float32, device=device)
    frequency = 1.0 / config.rope_theta ** (half / config.rope_dim)
    magnitude = 1.0
    match config.rope_scaling:
        case YarnScaling() as scaling:
            frequency, magnitude = _yarn_frequency(frequency, config, scaling), scaling.magnitude
        case Llama3Scaling() as scaling:
            frequency = _llama3_frequency(frequency, scaling)
        case LinearScaling(factor=factor):
            frequency = frequency / factor
    angle = torch.outer(torch.arange(length, dtype=torch.float32, device=device), frequency)
    return angle.cos() * magnitude, angle.sin() * magnitude


def _llama3_frequency(frequency: Tensor, scaling: Llama3Scaling) -> Tensor:
    """Divide by the factor what turns fewer than `low_freq_factor` times over the trained length, keep what turns more
    than `high_freq_factor` times, blend between (Llama 3.1's reference code)."""
    turns = scaling.original_max_position_embeddings * frequency / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return frequency / scaling.factor * (1 - kept) + frequency * kept


def _yarn_frequency(frequency: Tensor, config: ModelConfig, scaling: YarnScaling) -> Tensor:
    """Divide slow frequencies by the factor, keep fast ones, ramp linearly between (V3's inference/model.py)."""
    dim, trained = config.rope_dim, scaling.original_max_position_embeddings

    def pair_turning(rotations: float) -> float:
        """Index of the rotary dimension that turns `rotations` times over the trained length."""
        return dim * math.log(trained / (rotations * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    low = max(math.floor(pair_turning(scaling.beta_fast)), 0)
    high = min(math.ceil(pair_turning(scaling.beta_slow)), dim - 1)
    index = torch.arange(dim // 2, dtype=torch.float32, device=frequency.device)
    slow = ((index - low) / max(high - low, 0.001)).clamp(0, 1)
    return frequency / scaling.factor * slow + frequency * (1 - slow)
