"""The shape of a decoder with grouped-query attention."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from ziphius.model.config import CacheLayout, ModelConfig
from ziphius.model.scaling import take_rope


class GroupedConfig(ModelConfig):
    """Queries of `num_attention_heads` heads share `num_key_value_heads` keys and values.

    A family says by class whether queries, keys and values have a bias (`qkv_bias`) and whether queries and keys are
    normalised by head before they are rotated (`qk_norm`).
    """

    qkv_bias: ClassVar[bool] = False
    qk_norm: ClassVar[bool] = False
    rope_dim_key = "head_dim"
    refused: ClassVar[dict[str, str]] = {}  # keys that must be false or left out, and what they would do

    num_key_value_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    attention_bias: Literal[False] = False
    num_nextn_predict_layers: Literal[0] = Field(0, exclude=True)

    @model_validator(mode="after")
    def _heads_share(self) -> GroupedConfig:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of num_key_value_heads "
                f"({self.num_key_value_heads})"
            )
        return self

    @property
    def rope_dim(self) -> int:
        return self.head_dim

    @property
    def qk_head_dim(self) -> int:
        return self.head_dim

    @property
    def cache_layout(self) -> CacheLayout:
        """Every key, then every value."""
        heads, dim = self.num_key_value_heads, self.head_dim
        return CacheLayout(heads, dim, dim, heads * dim)

    @classmethod
    def published(cls, raw: dict[str, Any]) -> dict[str, Any]:
        """Fill what older files leave to be derived, and refuse what would be another network."""
        for key, effect in cls.refused.items():
            if raw.get(key):
                raise ValueError(f"{key} is {raw[key]!r}: {effect}, which is not read here")
        if raw.get("partial_rotary_factor", 1.0) != 1.0:
            raise ValueError("partial_rotary_factor is not 1: only a part of each head would be rotated")
        take_rope(raw, known=("yarn", "llama3", "linear"))
        if raw.get("num_key_value_heads") is None:
            raw["num_key_value_heads"] = raw.get("num_attention_heads")
        if raw.get("head_dim") is None and raw.get("num_attention_heads"):
            raw["head_dim"] = raw.get("hidden_size", 0) // raw["num_attention_heads"]
        return raw
