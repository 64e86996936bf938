"""The shape of a network: the keys of `config.json`, checked. Imports no torch, so plans stay quick."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

# config.json keys that say nothing about the network itself: kept on load and written back as they were.
_HF_BOOKKEEPING = ("architectures", "auto_map", "torch_dtype", "dtype", "transformers_version", "use_cache")

_ROPE_OTHER = ("rope_type", "rope_theta")  # what transformers 5 keeps in the same dictionary


class RopeScaling(BaseModel):
    """YaRN as in `rope_scaling` of DeepSeek's configs (V3 §4.3; Peng et al. 2023, arXiv 2309.00071).

    `mscale` scales cos/sin by the ratio to `mscale_all_dim`; `mscale_all_dim` scales the softmax. Left out, they are
    1 and 0, as in DeepSeek's own code.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["yarn"] = "yarn"
    factor: float = Field(gt=1)
    original_max_position_embeddings: int = Field(gt=0)
    beta_fast: float = 32
    beta_slow: float = 1
    mscale: float = 1.0
    mscale_all_dim: float = 0.0


class ModelConfig(BaseModel):
    """A DeepSeek-V2 or V3 network. Field names and meanings are those of the published `config.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model_type: Literal["deepseek_v2", "deepseek_v3"] = "deepseek_v3"
    vocab_size: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)
    moe_intermediate_size: int = Field(gt=0)
    num_hidden_layers: int = Field(gt=0)
    num_nextn_predict_layers: int = Field(0, ge=0)
    num_attention_heads: int = Field(gt=0)
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
    max_position_embeddings: int = Field(4096, gt=0)
    rope_theta: float = Field(10000.0, gt=0)
    rope_scaling: RopeScaling | None = None
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.006
    tie_word_embeddings: bool = False
    hidden_act: Literal["silu"] = "silu"
    attention_bias: Literal[False] = False
    attention_dropout: float = Field(0.0, ge=0, le=0)
    bos_token_id: int | None = 0
    eos_token_id: int | None = 1
    pad_token_id: int | None = None
    extra: dict[str, Any] = Field(default_factory=dict, exclude=True)

    @model_validator(mode="after")
    def _sizes_fit(self) -> ModelConfig:
        if self.qk_rope_head_dim % 2:
            raise ValueError(f"qk_rope_head_dim is {self.qk_rope_head_dim}; rotary pairs need an even number")
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

    # --- derived ---------------------------------------------------------------------------------------------------

    @property
    def qk_head_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    def is_moe_layer(self, layer: int) -> bool:
        """Whether layer `layer` (0-based; MTP modules follow the main stack) holds experts."""
        return (
            self.n_routed_experts is not None
            and layer >= self.first_k_dense_replace
            and layer % self.moe_layer_freq == 0
        )

    @property
    def softmax_scale(self) -> float:
        """1/sqrt(qk_head_dim), times mscale² under YaRN (facts 1.2; V3's inference/model.py)."""
        scale = self.qk_head_dim**-0.5
        if self.rope_scaling is not None and self.rope_scaling.mscale_all_dim:
            scale *= yarn_mscale(self.rope_scaling.factor, self.rope_scaling.mscale_all_dim) ** 2
        return scale

    # --- config.json -----------------------------------------------------------------------------------------------

    @classmethod
    def from_hf(cls, raw: dict[str, Any]) -> ModelConfig:
        """Read a `config.json` dictionary, in the published form or as transformers 5 rewrites it.

        Raises ValueError naming the key when the file describes a network that is not DeepSeek-V2/V3.
        """
        raw = dict(raw)
        family = raw.get("model_type")
        if family == "kimi_k2":
            raw["model_type"] = family = "deepseek_v3"
        if family not in ("deepseek_v2", "deepseek_v3"):
            raise ValueError(f"model_type is {family!r}; this package reads 'deepseek_v2' and 'deepseek_v3'")
        if raw.get("rope_interleave") is False:
            raise ValueError("rope_interleave is false; DeepSeek's networks rotate interleaved pairs")
        _fill_what_transformers_drops(raw, family)
        known = {key: value for key, value in raw.items() if key in cls.model_fields and key != "extra"}
        extra = {key: value for key, value in raw.items() if key not in cls.model_fields}
        return cls(**known, extra=extra)

    def to_hf(self) -> dict[str, Any]:
        """The `config.json` dictionary with every published key, also those that transformers 5 leaves out."""
        own = self.model_dump()
        own["num_key_value_heads"] = self.num_attention_heads
        own["rope_theta"] = self.rope_theta
        architecture = "DeepseekV3ForCausalLM" if self.model_type == "deepseek_v3" else "DeepseekV2ForCausalLM"
        kept = {key: value for key, value in self.extra.items() if key in _HF_BOOKKEEPING and key != "architectures"}
        others = {key: value for key, value in self.extra.items() if key not in _HF_BOOKKEEPING and key not in own}
        return {"architectures": [architecture], **own, **others, **kept}


def yarn_mscale(factor: float, mscale: float) -> float:
    """0.1·mscale·ln(factor) + 1 (V3 §4.3; V3's inference/model.py)."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _fill_what_transformers_drops(raw: dict[str, Any], family: str) -> None:
    """Undo the renames of transformers 5 and fill the keys it no longer writes with the family's own values."""
    rope = raw.pop("rope_parameters", None)
    if rope:
        raw.setdefault("rope_theta", rope.get("rope_theta", 10000.0))
        if rope.get("rope_type", "default") == "yarn" and not raw.get("rope_scaling"):
            raw["rope_scaling"] = rope
    scaling = raw.get("rope_scaling")
    if scaling:
        kind = scaling.get("type", scaling.get("rope_type", "yarn"))
        if kind != "yarn":
            raise ValueError(f"rope_scaling type is {kind!r}; DeepSeek's networks use 'yarn'")
        for key, value in scaling.items():
            if key not in RopeScaling.model_fields and key not in _ROPE_OTHER and value is not None:
                raise ValueError(f"rope_scaling has {key!r}, which DeepSeek's YaRN does not know")
        raw["rope_scaling"] = {k: v for k, v in scaling.items() if k in RopeScaling.model_fields} | {"type": "yarn"}
    raw.pop("num_key_value_heads", None)
    v3 = family == "deepseek_v3"
    raw.setdefault("topk_method", "noaux_tc" if v3 else "greedy")
    raw.setdefault("scoring_func", "sigmoid" if v3 else "softmax")
    raw.setdefault("norm_topk_prob", v3)
    for key in ("n_group", "topk_group"):
        if raw.get(key) is None:
            raw[key] = 1
    for key in ("initializer_range",):
        raw.setdefault(key, 0.02)
