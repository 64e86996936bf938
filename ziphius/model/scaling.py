"""How the rotary angles of a network were stretched for texts longer than it was first trained on. Imports no torch."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class _Scaling(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class YarnScaling(_Scaling):
    """YaRN (V3 §4.3; Peng et al. 2023, arXiv 2309.00071).

    `mscale` scales cos and sin by the ratio to `mscale_all_dim`, which in DeepSeek's networks scales the softmax. Left
    out, they are 1 and 0, as in DeepSeek's own code and for all other networks.
    """

    type: Literal["yarn"] = "yarn"
    factor: float = Field(gt=1)
    original_max_position_embeddings: int = Field(gt=0)
    beta_fast: float = 32
    beta_slow: float = 1
    mscale: float = 1.0
    mscale_all_dim: float = 0.0

    @property
    def magnitude(self) -> float:
        """The factor on cos and sin, 1 in DeepSeek's published models."""
        return yarn_mscale(self.factor, self.mscale) / yarn_mscale(self.factor, self.mscale_all_dim)


class Llama3Scaling(_Scaling):
    """Llama 3.1's: waves longer than the trained text are slowed by `factor`, short ones kept, others blended."""

    type: Literal["llama3"] = "llama3"
    factor: float = Field(ge=1)
    low_freq_factor: float = Field(gt=0)
    high_freq_factor: float = Field(gt=0)
    original_max_position_embeddings: int = Field(gt=0)

    @model_validator(mode="after")
    def _in_order(self) -> Llama3Scaling:
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"high_freq_factor ({self.high_freq_factor:g}) must be above low_freq_factor "
                f"({self.low_freq_factor:g}): between them waves are blended"
            )
        return self


class LinearScaling(_Scaling):
    """Every position divided by `factor` (Chen et al. 2023, arXiv 2306.15595)."""

    type: Literal["linear"] = "linear"
    factor: float = Field(ge=1)


RopeScaling = YarnScaling | Llama3Scaling | LinearScaling
_KINDS: dict[str, type[_Scaling]] = {"yarn": YarnScaling, "llama3": Llama3Scaling, "linear": LinearScaling}
_BESIDE = ("rope_type", "rope_theta")  # what transformers 5 keeps in the same dictionary


def yarn_mscale(factor: float, mscale: float) -> float:
    """0.1·mscale·ln(factor) + 1 (V3 §4.3; V3's inference/model.py)."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def take_rope(raw: dict[str, Any], known: tuple[str, ...]) -> None:
    """Bring `rope_theta` and `rope_scaling` of a config.json dictionary into the published form, in place.

    transformers 5 writes both as `rope_parameters`, and "default" where nothing is scaled. Raises ValueError for a
    kind of scaling that is not among `known`, and for a key that its kind does not have.
    """
    rope = raw.pop("rope_parameters", None) or {}
    if "rope_theta" in rope:
        raw.setdefault("rope_theta", rope["rope_theta"])
    scaling = raw.get("rope_scaling") or rope
    kind = scaling.get("type", scaling.get("rope_type", "default"))
    if kind == "default":
        raw["rope_scaling"] = None
        return
    if kind not in known:
        raise ValueError(f"rope_scaling type is {kind!r}; this family uses {', '.join(map(repr, known))}")
    fields = _KINDS[kind].model_fields
    for key, value in scaling.items():
        if key not in fields and key not in _BESIDE and value is not None:
            raise ValueError(f"rope_scaling has {key!r}, which {kind!r} does not know")
    given = {key: value for key, value in scaling.items() if key in fields and value is not None}
    if "original_max_position_embeddings" in fields:
        given.setdefault("original_max_position_embeddings", raw.get("max_position_embeddings"))
    raw["rope_scaling"] = given | {"type": kind}
