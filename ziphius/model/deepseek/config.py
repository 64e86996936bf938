"""The shape of a DeepSeek-V2 or V3 network."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from ziphius.model.config import CacheLayout, ModelConfig, Routing
from ziphius.model.scaling import YarnScaling, take_rope, yarn_mscale


class DeepSeekConfig(ModelConfig):
    """Latent attention, and experts behind `first_k_dense_replace` layers (facts 1.1)."""

    architectures = {"deepseek_v3": "DeepseekV3ForCausalLM", "deepseek_v2": "DeepseekV2ForCausalLM"}  # noqa: RUF012
    rope_dim_key = "qk_rope_head_dim"

    model_type: Literal["deepseek_v2", "deepseek_v3"] = "deepseek_v3"
    moe_intermediate_size: int = Field(gt=0)
    n_routed_experts: int | None = Field(None, gt=0)
    n_shared_experts: int = Field(1, ge=1)
    num_experts_per_tok: int = Field(1, gt=0)
    n_group: int = Field(1, gt=0)
    topk_group: int = Field(1, gt=0)
    topk_method: Literal["noaux_tc", "greedy", "group_limited_greedy"] = "noaux_tc"
    scoring_func: Literal["sigmoid", "softmax"] = "sigmoid"
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 1.0
    first_k_dense_replace: int = Field(0, ge=0)
    moe_layer_freq: int = Field(1, gt=0)
    q_lora_rank: int | None = Field(None, gt=0)
    kv_lora_rank: int = Field(gt=0)
    qk_nope_head_dim: int = Field(gt=0)
    qk_rope_head_dim: int = Field(gt=0)
    v_head_dim: int = Field(gt=0)
    rope_scaling: YarnScaling | None = None
    initializer_range: float = 0.006
    attention_bias: Literal[False] = False
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 1

    @model_validator(mode="after")
    def _sizes_fit(self) -> DeepSeekConfig:
        experts = self.n_routed_experts
        if experts is None:
            return self
        if experts % self.n_group:
            raise ValueError(f"n_routed_experts ({experts}) must be a multiple of n_group ({self.n_group})")
        if self.topk_group > self.n_group:
            raise ValueError(f"topk_group ({self.topk_group}) cannot exceed n_group ({self.n_group})")
        reachable = experts // self.n_group * (self.n_group if self.topk_method == "greedy" else self.topk_group)
        if self.num_experts_per_tok > reachable:
            raise ValueError(
                f"num_experts_per_tok ({self.num_experts_per_tok}) exceeds the {reachable} experts that "
                f"topk_group={self.topk_group} of n_group={self.n_group} leaves; raise topk_group or lower the top-k"
            )
        if self.topk_method == "noaux_tc" and self.n_group > 1 and experts // self.n_group < 2:
            raise ValueError("noaux_tc ranks a group by its two best experts: a group needs at least two")
        if (self.topk_method == "noaux_tc") != (self.scoring_func == "sigmoid"):
            raise ValueError(
                f"topk_method={self.topk_method!r} with scoring_func={self.scoring_func!r} is not a published gate: "
                "use noaux_tc with sigmoid (V3), greedy or group_limited_greedy with softmax (V2)"
            )
        return self

    @property
    def rope_dim(self) -> int:
        return self.qk_rope_head_dim

    @property
    def qk_head_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def softmax_scale(self) -> float:
        """1/sqrt(qk_head_dim), times mscale² under YaRN (facts 1.2; V3's inference/model.py)."""
        scale = super().softmax_scale
        if self.rope_scaling is not None and self.rope_scaling.mscale_all_dim:
            scale *= yarn_mscale(self.rope_scaling.factor, self.rope_scaling.mscale_all_dim) ** 2
        return scale

    @property
    def cache_layout(self) -> CacheLayout:
        """One normalised latent and one rotated key, whatever the number of heads (V2 §2.1.3)."""
        return CacheLayout(1, self.kv_lora_rank + self.qk_rope_head_dim, self.kv_lora_rank, 0)

    @property
    def routing(self) -> Routing | None:
        if self.n_routed_experts is None:
            return None
        grouped = self.topk_method != "greedy"
        normalise = self.norm_topk_prob and self.num_experts_per_tok > 1
        scaled = not (normalise and self.model_type == "deepseek_v2")  # V2's code does one or the other
        return Routing(
            experts=self.n_routed_experts,
            top_k=self.num_experts_per_tok,
            hidden=self.moe_intermediate_size,
            shared_hidden=self.n_shared_experts * self.moe_intermediate_size,
            groups=self.n_group if grouped else 1,
            kept_groups=self.topk_group if grouped else 1,
            scoring=self.scoring_func,
            selection_bias=self.topk_method == "noaux_tc",
            normalise=normalise,
            factor=self.routed_scaling_factor if scaled else 1.0,
        )

    def is_moe_layer(self, layer: int) -> bool:
        return (
            self.n_routed_experts is not None
            and layer >= self.first_k_dense_replace
            and layer % self.moe_layer_freq == 0
        )

    @classmethod
    def published(cls, raw: dict[str, Any]) -> dict[str, Any]:
        """Fill the keys that transformers 5 no longer writes with the family's own values."""
        if raw["model_type"] == "kimi_k2":
            raw["model_type"] = "deepseek_v3"
        if raw.get("rope_interleave") is False:
            raise ValueError("rope_interleave is false; DeepSeek's networks rotate interleaved pairs")
        take_rope(raw, known=("yarn",))
        raw.pop("num_key_value_heads", None)
        v3 = raw["model_type"] == "deepseek_v3"
        raw.setdefault("topk_method", "noaux_tc" if v3 else "greedy")
        raw.setdefault("scoring_func", "sigmoid" if v3 else "softmax")
        raw.setdefault("norm_topk_prob", v3)
        for key in ("n_group", "topk_group"):
            if raw.get(key) is None:
                raw[key] = 1
        raw.setdefault("initializer_range", 0.02)
        return raw

    def to_hf(self) -> dict[str, Any]:
        return super().to_hf() | {"num_key_value_heads": self.num_attention_heads, "rope_theta": self.rope_theta}
