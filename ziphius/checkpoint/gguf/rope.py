"""How a network's rotary scaling is written in a GGUF file, and read from one.

Llama 3's kind has no keys of its own there: the file holds the number by which each frequency is divided.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ziphius.checkpoint.errors import CheckpointError
from ziphius.checkpoint.gguf.keys import Keys, Value
from ziphius.model.scaling import LinearScaling, Llama3Scaling, RopeScaling, YarnScaling

FREQUENCIES = "rope_freqs.weight"
# Every published Llama with this scaling has these two; only their ratio to the trained length shows in a file.
_LOW, _HIGH = 1.0, 4.0
_LENGTHS = [2**power for power in range(5, 21)]


def scaling_keys(scaling: RopeScaling | None) -> dict[str, Value]:
    """GGUF keys, without the architecture, of a scaling whose angles llama.cpp computes by itself.

    Raises CheckpointError where it would compute others.
    """
    match scaling:
        case None | Llama3Scaling():
            return {}
        case LinearScaling():
            return {"rope.scaling.type": "linear", "rope.scaling.factor": scaling.factor}
        case YarnScaling():
            if (scaling.beta_fast, scaling.beta_slow, scaling.mscale, scaling.mscale_all_dim) != (32, 1, 1, 0):
                raise CheckpointError(
                    "llama.cpp would compute another network: rope_scaling's beta_fast, beta_slow, mscale and "
                    "mscale_all_dim are not 32, 1, 1 and 0; serve it with `ziphius serve` or vLLM"
                )
            return {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": scaling.factor,
                "rope.scaling.original_context_length": scaling.original_max_position_embeddings,
            }


def read_scaling(keys: Keys, divisors: np.ndarray | None, theta: float, dim: int) -> dict[str, Any] | None:
    """`rope_scaling` of config.json for a file with these keys; `divisors` [dim/2] are its `rope_freqs.weight`.

    Raises CheckpointError for a scaling of another kind.
    """
    kind = keys.text("rope.scaling.type", "none")
    if divisors is not None:
        found = _llama3(divisors, theta, dim)
        if found is None or kind != "none":
            raise CheckpointError(
                f"{FREQUENCIES} of this file is not Llama 3's scaling; take the model's original folder"
            )
        return found.model_dump()
    if keys.number("rope.scaling.attn_factor", 1.0) != 1.0:
        raise CheckpointError("rope.scaling.attn_factor of this file is not 1; take the model's original folder")
    if kind == "none":
        factor = keys.number("rope.scale_linear", 1.0)  # older files
        return None if factor == 1.0 else {"type": "linear", "factor": factor}
    factor = keys.number("rope.scaling.factor")
    if kind == "linear":
        return {"type": "linear", "factor": factor}
    if kind == "yarn":
        length = keys.count("rope.scaling.original_context_length")
        return {"type": "yarn", "factor": factor, "original_max_position_embeddings": length}
    raise CheckpointError(f"rope.scaling.type {kind!r} of this file is not read; take the model's original folder")


def llama3_divisors(scaling: Llama3Scaling, theta: float, dim: int) -> np.ndarray:
    """What each of the dim/2 frequencies is divided by, fp32 (Llama 3.1: 1 for short waves, `factor` for long ones)."""
    waves = 2 * math.pi * theta ** (np.arange(0, dim, 2, dtype=np.float64) / dim)
    turns = scaling.original_max_position_embeddings / waves
    blend = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blend = blend.clip(0, 1)
    return (1 / ((1 - blend) / scaling.factor + blend)).astype(np.float32)


def _llama3(divisors: np.ndarray, theta: float, dim: int) -> Llama3Scaling | None:
    """The scaling that gives these divisors, with Meta's `low_freq_factor` and `high_freq_factor`; None if none does."""
    factor = float(divisors.max())
    if not factor >= 1:
        return None
    for length in _LENGTHS:
        scaling = Llama3Scaling(
            factor=factor, low_freq_factor=_LOW, high_freq_factor=_HIGH, original_max_position_embeddings=length
        )
        if np.allclose(llama3_divisors(scaling, theta, dim), divisors, rtol=1e-5, atol=0):
            return scaling
    return None
