"""What the configs of all families have in common. Imports no torch, so plans stay quick.

A family's config is a subclass whose fields are the keys of its published `config.json`. What the rest of the house
asks of a network (how its gates choose, what its cache holds) is a property here, and each family answers it once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ziphius.model.formats import Stored
from ziphius.model.scaling import RopeScaling

# config.json keys that say nothing about the network itself: kept on load and written back as they were.
_BOOKKEEPING = ("architectures", "auto_map", "torch_dtype", "dtype", "transformers_version", "use_cache")


@dataclass(frozen=True)
class Routing:
    """How a gate chooses `top_k` of `experts` for a token, and what an expert is.

    `scoring` makes scores of the gate's logits. With `selection_bias` the choice sees score + bias and a group of
    experts counts as its two best (V3's `noaux_tc`), without as its best. Only experts of the best `kept_groups` of
    `groups` are chosen. The chosen scores are divided by their sum where `normalise` says so, then multiplied by
    `factor`. Expert and shared MLP have `hidden` and `shared_hidden` (0: there is none) hidden units.
    """

    experts: int
    top_k: int
    hidden: int
    shared_hidden: int = 0
    groups: int = 1
    kept_groups: int = 1
    scoring: Literal["sigmoid", "softmax"] = "softmax"
    selection_bias: bool = False
    normalise: bool = False
    factor: float = 1.0


@dataclass(frozen=True)
class CacheLayout:
    """What a token leaves behind in a layer: `width` values, in which each of `heads` has a key and a value.

    Head g's key is `key` values from g·key on, its value `value` values from `value_start` + g·value on. Queries share
    heads evenly. A latent cache has one head, whose value is the front of its key (V2 §2.1.2).
    """

    heads: int
    key: int
    value: int
    value_start: int

    @property
    def width(self) -> int:
        return max(self.heads * self.key, self.value_start + self.heads * self.value)


class ModelConfig(BaseModel):
    """A decoder. `model_type` and the fields are those of the published `config.json`; `extra` keeps what it has more.

    Raises ValueError (pydantic's) naming the key for sizes that make no network.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    architectures: ClassVar[dict[str, str]] = {}  # model_type -> transformers' class

    model_type: str
    vocab_size: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)
    num_hidden_layers: int = Field(gt=0)
    num_nextn_predict_layers: int = Field(0, ge=0)
    num_attention_heads: int = Field(gt=0)
    max_position_embeddings: int = Field(4096, gt=0)
    rope_theta: float = Field(10000.0, gt=0)
    rope_scaling: RopeScaling | None = Field(None, discriminator="type")
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    hidden_act: Literal["silu"] = "silu"
    attention_dropout: float = Field(0.0, ge=0, le=0)
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    extra: dict[str, Any] = Field(default_factory=dict, exclude=True)

    @model_validator(mode="after")
    def _rope_is_even(self) -> ModelConfig:
        if self.rope_dim % 2:
            raise ValueError(f"{self.rope_dim_key} is {self.rope_dim}; rotary pairs need an even number")
        return self

    # --- what a family answers -------------------------------------------------------------------------------------

    rope_dim_key: ClassVar[str]  # the key of config.json that sets `rope_dim`

    @property
    def rope_dim(self) -> int:
        """Values of a head's query and key that are rotated."""
        raise NotImplementedError

    @property
    def qk_head_dim(self) -> int:
        """Values of a head's query and key in training."""
        raise NotImplementedError

    @property
    def softmax_scale(self) -> float:
        """What scores are multiplied by before the softmax."""
        return self.qk_head_dim**-0.5

    @property
    def cache_layout(self) -> CacheLayout:
        """What a token leaves in a layer's cache."""
        raise NotImplementedError

    @property
    def routing(self) -> Routing | None:
        """The rule of the layers that hold experts; None where no layer does."""
        return None

    def is_moe_layer(self, layer: int) -> bool:
        """Whether layer `layer` (0-based; prediction modules follow the main stack) holds experts."""
        return False

    @property
    def stored(self) -> Stored:
        """BF16 where config.json says that the weights are in 16 or 8 bits, else FP32."""
        format = self.extra.get("dtype") or self.extra.get("torch_dtype")
        return "bf16" if format in ("bfloat16", "float16") else "fp32"

    def replaced(self, changes: dict[str, Any]) -> Self:
        """The same with some keys of config.json changed, checked as a whole."""
        return type(self)(**self.model_dump() | changes, extra=self.extra)

    # --- config.json -----------------------------------------------------------------------------------------------

    @classmethod
    def published(cls, raw: dict[str, Any]) -> dict[str, Any]:
        """A `config.json` dictionary of the family in the form that `cls` reads. Raises ValueError naming a key."""
        raise NotImplementedError

    @classmethod
    def from_published(cls, raw: dict[str, Any]) -> ModelConfig:
        """Read a `config.json` dictionary, as published or as transformers 5 rewrites it."""
        raw = cls.published(dict(raw))
        known = {key: value for key, value in raw.items() if key in cls.model_fields and key != "extra"}
        extra = {key: value for key, value in raw.items() if key not in cls.model_fields}
        return cls(**known, extra=extra)

    def to_hf(self) -> dict[str, Any]:
        """The `config.json` dictionary with every published key, also those that transformers 5 leaves out."""
        own = self.model_dump()
        kept = {key: value for key, value in self.extra.items() if key in _BOOKKEEPING and key != "architectures"}
        others = {key: value for key, value in self.extra.items() if key not in _BOOKKEEPING and key not in own}
        return {"architectures": [self.architectures[self.model_type]], **own, **others, **kept}
