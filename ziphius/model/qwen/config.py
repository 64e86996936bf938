"""The shapes of Qwen's networks."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from ziphius.model.config import Routing
from ziphius.model.grouped.config import GroupedConfig


class _QwenConfig(GroupedConfig):
    refused = {"use_sliding_window": "some layers would see only the latest tokens"}  # noqa: RUF012

    max_position_embeddings: int = Field(32768, gt=0)


class Qwen2Config(_QwenConfig):
    """Biases on queries, keys and values (Qwen2.5, arXiv 2412.15115 §2)."""

    architectures = {"qwen2": "Qwen2ForCausalLM"}  # noqa: RUF012
    qkv_bias = True

    model_type: Literal["qwen2"] = "qwen2"


class Qwen3Config(_QwenConfig):
    """No biases; queries and keys normalised by head (Qwen3, arXiv 2505.09388 §2)."""

    architectures = {"qwen3": "Qwen3ForCausalLM"}  # noqa: RUF012
    qk_norm = True
    refused = _QwenConfig.refused | {"attention_bias": "queries, keys, values and outputs would have biases"}

    model_type: Literal["qwen3"] = "qwen3"

    @classmethod
    def published(cls, raw: dict[str, Any]) -> dict[str, Any]:
        if raw.get("head_dim") is None:
            raw["head_dim"] = 128  # transformers' default for this family, whatever the width
        return super().published(raw)


class Qwen3MoeConfig(_QwenConfig):
    """Qwen3 with routed experts and no shared one; the gate is a softmax (arXiv 2505.09388 §2)."""

    architectures = {"qwen3_moe": "Qwen3MoeForCausalLM"}  # noqa: RUF012
    qk_norm = True
    refused = Qwen3Config.refused

    model_type: Literal["qwen3_moe"] = "qwen3_moe"
    num_experts: int = Field(gt=0)
    num_experts_per_tok: int = Field(gt=0)
    moe_intermediate_size: int = Field(gt=0)
    norm_topk_prob: bool = False
    decoder_sparse_step: int = Field(1, gt=0)
    mlp_only_layers: list[int] = Field(default_factory=list)

    @model_validator(mode="after")
    def _enough_experts(self) -> Qwen3MoeConfig:
        if self.num_experts_per_tok > self.num_experts:
            raise ValueError(
                f"num_experts_per_tok ({self.num_experts_per_tok}) exceeds num_experts ({self.num_experts})"
            )
        return self

    @property
    def routing(self) -> Routing:
        return Routing(
            experts=self.num_experts,
            top_k=self.num_experts_per_tok,
            hidden=self.moe_intermediate_size,
            normalise=self.norm_topk_prob,
        )

    def is_moe_layer(self, layer: int) -> bool:
        return layer not in self.mlp_only_layers and (layer + 1) % self.decoder_sparse_step == 0

    @classmethod
    def published(cls, raw: dict[str, Any]) -> dict[str, Any]:
        raw = super().published(raw)
        if "num_local_experts" in raw:  # transformers 5's name
            raw.setdefault("num_experts", raw.pop("num_local_experts"))
        if raw.get("mlp_only_layers") is None:
            raw["mlp_only_layers"] = []
        return raw
