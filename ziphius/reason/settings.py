"""What a recipe can say about reinforcement learning. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ziphius.reason.rewards import RewardWeights
from ziphius.train.settings import PolicySettings


class GRPOSettings(BaseModel):
    """Every option is off or as in R1 unless it says otherwise.

    - `normalise`: divide by the group's deviation (GRPO) or not (`false`: Dr. GRPO, arXiv 2503.20783).
    - `mean`: `sequence` averages each answer first (GRPO), `token` weighs all tokens alike (DAPO, arXiv 2503.14476),
      `constant` divides by the length limit (Dr. GRPO).
    - `dynamic_sampling`: draw further problems, at most `max_rounds` times, in place of groups whose answers all earn
      the same (DAPO).
    - `overlong`: answers cut off by the limit are scored as they stand (`keep`), left out of the loss (`mask`), or pay
      up to 1 for the last `overlong_margin` tokens before the limit (`soft`); the latter two from DAPO.
    - `mini_batches`: updates made from one set of rollouts (R1: 16).
    - `reference_refresh`: steps after which the KL reference becomes the current policy (R1-Zero: 400).
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    group_size: int = Field(8, ge=2)
    prompts_per_step: int = Field(32, gt=0)
    temperature: float = Field(1.0, gt=0)
    max_new_tokens: int = Field(128, gt=0)
    mini_batches: int = Field(1, gt=0)
    normalise: bool = True
    mean: Literal["sequence", "token", "constant"] = "token"
    dynamic_sampling: bool = False
    max_rounds: int = Field(4, gt=0)
    overlong: Literal["keep", "mask", "soft"] = "keep"
    overlong_margin: int = Field(16, gt=0)
    reference_refresh: int = Field(400, gt=0)
    micro_tokens: int = Field(4096, gt=0)
    policy: PolicySettings = PolicySettings()
    rewards: RewardWeights = RewardWeights()

    @model_validator(mode="after")
    def _hangs_together(self) -> GRPOSettings:
        if self.mini_batches > self.prompts_per_step:
            raise ValueError(
                f"mini_batches ({self.mini_batches}) exceeds prompts_per_step ({self.prompts_per_step}), so that some "
                "updates would have no answers; lower it"
            )
        if self.dynamic_sampling and self.max_rounds == 1:
            raise ValueError("dynamic_sampling draws further problems only with max_rounds above 1; raise it")
        if self.overlong == "soft" and self.overlong_margin > self.max_new_tokens:
            raise ValueError(
                f"overlong_margin ({self.overlong_margin}) exceeds max_new_tokens ({self.max_new_tokens}); lower it"
            )
        return self
