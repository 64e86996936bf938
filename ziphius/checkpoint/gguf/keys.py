"""The keys of a GGUF file: those that every network has, and any asked for by the kind of value that it must have."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from ziphius.checkpoint.errors import CheckpointError
from ziphius.model.config import ModelConfig

Value = str | bool | int | float | list[str] | list[int] | list[float]


def decoder_keys(config: ModelConfig) -> dict[str, Value]:
    """What every architecture says of a network, by the names behind its prefix."""
    return {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "attention.head_count": config.num_attention_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.dimension_count": config.rope_dim,
        "rope.freq_base": config.rope_theta,
    }


class Keys:
    """The keys that begin with `prefix`, named without it. Raises CheckpointError naming file and key for a value that
    is missing (where no `default` is given), of another kind, or no number that a network could have."""

    def __init__(self, keys: dict[str, Any], prefix: str, path: Path) -> None:
        self._keys, self._prefix, self._path = keys, prefix, path

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._keys

    def count(self, name: str, default: int | None = None) -> int:
        """A whole number from 0 on. A list that gives each layer the same one will do."""
        value = self._get(name, default)
        if isinstance(value, list) and value and value.count(value[0]) == len(value):
            value = value[0]
        if isinstance(value, list):
            raise self._refusal(name, "differs from layer to layer, and such networks are not read")
        if type(value) is not int or value < 0:
            raise self._refusal(name, f"is {_shown(value)}, not a whole number")
        return value

    def number(self, name: str, default: float | None = None, zero: bool = False) -> float:
        """A finite number above 0 (or `zero`), as the fewest digits that give its fp32: 1e-05, not
        9.999999747378752e-06."""
        value = self._get(name, default)
        if type(value) not in (int, float) or not math.isfinite(value) or value < 0 or (value == 0 and not zero):
            raise self._refusal(name, f"is {_shown(value)}, not a number {'from 0 on' if zero else 'above 0'}")
        return float(str(np.float32(value)))

    def flag(self, name: str, default: bool | None = None) -> bool:
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise self._refusal(name, f"is {_shown(value)}, not true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        value = self._get(name, default)
        if not isinstance(value, str):
            raise self._refusal(name, f"is {_shown(value)}, not a text")
        return value

    def _get(self, name: str, default: Any) -> Any:
        value = self._keys.get(self._prefix + name, default)
        if value is None:
            raise CheckpointError(f"{self._path} lacks the key {self._prefix}{name}; convert the model again")
        return value

    def _refusal(self, name: str, reason: str) -> CheckpointError:
        return CheckpointError(f"{self._path}: {self._prefix}{name} {reason}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:40] + "…"
