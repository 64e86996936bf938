"""What a recipe can say about training. Imports no torch."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ziphius.train.schedule import Schedule


class OptimizerSettings(BaseModel):
    """`adamw`: Loshchilov & Hutter 2019 with V3's β 0.9/0.95 and weight decay 0.1 (matrices only).

    `muon`: orthogonalised momentum for the matrices of the blocks (Jordan et al. 2024; update scaled by
    0.2·√max(rows, columns) so that AdamW's learning rate fits, Moonlight, arXiv 2502.16982 §2.2), AdamW for the rest.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    kind: Literal["adamw", "muon"] = "adamw"
    lr: float = Field(2e-3, gt=0, le=1)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    momentum: float = Field(0.95, ge=0, lt=1)
    clip: float = Field(1.0, gt=0)


class SFTOptimizer(OptimizerSettings):
    """A quarter of pretraining's rate, near where its decay ended: what the base can do is to be bent, not learned
    anew. V3 goes on from 5e-6, a fortieth of its peak (§5.1), with a network ten thousand times as large."""

    lr: float = Field(5e-4, gt=0, le=1)


class RLOptimizer(OptimizerSettings):
    """R1 takes 3e-6 for 37 B active parameters, TRL and others 1e-6 for a few billion; a network of under a million
    still learned at 4e-4 (recipes/r1-cpu.toml), and 2e-3 took one from 42.5% to 1.7%. No decay of the weights: a policy
    without reward would drift to zero."""

    lr: float = Field(1e-4, gt=0, le=1)
    weight_decay: float = Field(0.0, ge=0)


class LoopSettings(BaseModel):
    """What the loop needs to know beside the number of its updates.

    `max_skipped`: share of the last 50 updates that may be left out (spikes, losses that are not finite) before the
    stage stops as diverged. `loss_is_entropy`: whether the loss is a cross-entropy, whose size means something.
    `recompute`: what the backward pass computes again instead of keeping it: nothing, what is cheap, or whole blocks.
    `compile`: whether torch.compile makes a program of each block; 'auto' does so on a GPU
    for all but small networks.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    loss_is_entropy: ClassVar[bool] = True

    precision: Literal["bf16", "fp32"] = "bf16"
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: Schedule = Schedule()
    recompute: Literal["none", "selective", "full"] = "none"
    compile: Literal["auto"] | bool = "auto"
    bias_update_speed: float = Field(1e-3, ge=0)
    bias_mean_centred: bool = False
    spike_factor: float = Field(10.0, gt=1)
    max_skipped: float = Field(0.4, ge=0, le=1)
    save_every: int = Field(100, gt=0)
    gate_every: int = Field(50, gt=0)
    gate_target: float | None = Field(None, gt=0, le=1)


class TrainSettings(LoopSettings):
    """Settings of a stage of `steps` optimiser updates; the defaults are pretraining's."""

    steps: int = Field(gt=0)

    @model_validator(mode="after")
    def _warms_up_and_ends(self) -> TrainSettings:
        _must_warm_up_within(self.steps, self.schedule)
        return self


class LoRASettings(BaseModel):
    """Train low-rank updates W + alpha/rank · B A of frozen matrices (Hu et al. 2021, arXiv 2106.09685).

    `targets`: the last names of the published matrices that get one, such as ["q_proj", "v_proj"]; left out, all of
    attention and of the dense and shared MLPs. `experts`: those of the routed experts, too. The learning rate that
    suits is about ten times that of training the weights themselves.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    rank: int = Field(16, gt=0)
    alpha: float = Field(32.0, gt=0)
    targets: list[str] | None = Field(None, min_length=1)
    experts: bool = False


class TunedSettings(LoopSettings):
    """Settings of a stage that goes on from a model; `lora`, where given, in place of training its weights."""

    lora: LoRASettings | None = None

    @model_validator(mode="after")
    def _low_ranks_have_no_orthogonal_updates(self) -> TunedSettings:
        if self.lora is not None and self.optimizer.kind == "muon":
            raise ValueError("optimizer.kind 'muon' is for whole matrices and lora trains thin factors; use 'adamw'")
        return self


class SFTTrainSettings(TunedSettings):
    """Settings of a stage whose epochs set the number of its updates; `steps`, where given, is an upper bound."""

    optimizer: SFTOptimizer = SFTOptimizer()
    steps: int | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _warms_up_and_ends(self) -> SFTTrainSettings:
        if self.steps is not None:
            _must_warm_up_within(self.steps, self.schedule)
        return self

    def within(self, most: int) -> TrainSettings:
        """The loop's settings with as many steps as are asked for, but no more than `most`, where the epochs end."""
        return TrainSettings(**self.model_dump(exclude={"lora"}) | {"steps": min(self.steps or most, most)})


class RLTrainSettings(TunedSettings, TrainSettings):
    """Settings of reinforcement learning, whose loss has no size of its own: it is about 0 on and on."""

    loss_is_entropy: ClassVar[bool] = False

    optimizer: RLOptimizer = RLOptimizer()


def _must_warm_up_within(steps: int, schedule: Schedule) -> None:
    if schedule.warmup_steps is not None and schedule.warmup_steps >= steps:
        raise ValueError(
            f"schedule.warmup_steps ({schedule.warmup_steps}) leaves none of the {steps} steps at the full rate; lower "
            "it, or leave it out for a tenth of the steps"
        )


class LossSettings(BaseModel):
    """Weights of the parts (V3 §4.2: λ 0.3, later 0.1; α 1e-4)."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    mtp_weight: float = Field(0.3, ge=0)
    balance_weight: float = Field(1e-4, ge=0)


class PolicySettings(BaseModel):
    """The clipped policy objective of GRPO (DeepSeekMath, arXiv 2402.03300; R1N Methods), each later option by name.

    - `clip_low`, `clip_high`: range of the ratio; R1 clips at 10 from above, DAPO (arXiv 2503.14476) at 0.28.
    - `kl_weight`: estimator π_ref/π − log(π_ref/π) − 1 against the reference (R1-Zero 0.001; 0 leaves it out).
    - `importance_cap`: truncated importance weight min(π_train/π_sampler, cap) against the mismatch between sampler and
      trainer (Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training").
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    clip_low: float = Field(0.2, gt=0, lt=1)
    clip_high: float = Field(0.28, gt=0)
    kl_weight: float = Field(0.0, ge=0)
    importance_cap: float | None = Field(2.0, gt=1)
