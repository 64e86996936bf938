"""What a recipe can say about training. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from ziphius.train.schedule import Schedule


class OptimizerSettings(BaseModel):
    """`adamw`: Loshchilov & Hutter 2019 with V3's β 0.9/0.95 and weight decay 0.1 (matrices only).

    `muon`: orthogonalised momentum for the matrices of the blocks (Jordan et al. 2024; update scaled by
    0.2·√max(rows, columns) so that AdamW's learning rate fits, Moonlight, arXiv 2502.16982 §2.2), AdamW for the rest.
    """

    model_config = ConfigDict(extra="forbid")

    kind: Literal["adamw", "muon"] = "adamw"
    lr: float = Field(2e-3, gt=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    momentum: float = Field(0.95, ge=0, lt=1)
    clip: float = Field(1.0, gt=0)


class TrainSettings(BaseModel):
    """What the loop itself needs to know. A step is one optimiser update."""

    model_config = ConfigDict(extra="forbid")

    steps: int = Field(gt=0)
    precision: Literal["bf16", "fp32"] = "bf16"
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: Schedule = Schedule()
    bias_update_speed: float = Field(1e-3, ge=0)
    bias_mean_centred: bool = False
    spike_factor: float = Field(10.0, gt=1)
    save_every: int = Field(100, gt=0)
    gate_every: int = Field(50, gt=0)
    gate_target: float | None = Field(None, gt=0, le=1)


class LossSettings(BaseModel):
    """Weights of the parts (V3 §4.2: λ 0.3, later 0.1; α 1e-4)."""

    model_config = ConfigDict(extra="forbid")

    mtp_weight: float = Field(0.3, ge=0)
    balance_weight: float = Field(1e-4, ge=0)


class PolicySettings(BaseModel):
    """The clipped policy objective of GRPO (DeepSeekMath, arXiv 2402.03300; R1N Methods), each later option by name.

    - `clip_low`, `clip_high`: range of the ratio; R1 clips at 10 from above, DAPO (arXiv 2503.14476) at 0.28.
    - `kl_weight`: estimator π_ref/π − log(π_ref/π) − 1 against the reference (R1-Zero 0.001; 0 leaves it out).
    - `importance_cap`: truncated importance weight min(π_train/π_sampler, cap) against the mismatch between sampler and
      trainer (Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training").
    """

    model_config = ConfigDict(extra="forbid")

    clip_low: float = Field(0.2, gt=0, lt=1)
    clip_high: float = Field(0.28, gt=0)
    kl_weight: float = Field(0.0, ge=0)
    importance_cap: float | None = Field(2.0, gt=1)
    temperature: float = Field(1.0, gt=0)
