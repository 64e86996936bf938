"""How a network's rotary scaling is written in a GGUF file, and read from one.

Llama 3's kind has no keys of its own there: the file holds the number by which each frequency is divided.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ziphius.checkpoint.errors import CheckpointError
from ziphius.checkpoint.gguf.file import GGUFFile
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


def scaling_constants(scaling: RopeScaling | None, theta: float, dim: int) -> dict[str, np.ndarray]:
    """The tensor by which a file says what its keys cannot, where there is one."""
    return {FREQUENCIES: llama3_divisors(scaling, theta, dim)} if isinstance(scaling, Llama3Scaling) else {}


def read_scaling(keys: Keys, file: GGUFFile, theta: float, dim: int) -> dict[str, Any] | None:
    """`rope_scaling` of config.json for a network whose heads of `dim` turn with the base `theta`.

    Raises CheckpointError for a scaling of another kind.
    """
    kind = keys.text("rope.scaling.type", "none")
    if FREQUENCIES in file.tensors:
        found = _llama3(file, theta, dim) if kind == "none" else None
        if found is None:
            raise _unknown(file, f"{FREQUENCIES} is not Llama 3's scaling")
        return found.model_dump()
    if keys.number("rope.scaling.attn_factor", 1.0) != 1.0:
        raise _unknown(file, "rope.scaling.attn_factor is not 1")
    if kind == "none":
        factor = keys.number("rope.scale_linear", 1.0)  # older files
        return None if factor == 1.0 else {"type": "linear", "factor": factor}
    if kind == "linear":
        return {"type": "linear", "factor": keys.number("rope.scaling.factor")}
    if kind == "yarn":
        length = keys.count("rope.scaling.original_context_length")
        return {
            "type": "yarn",
            "factor": keys.number("rope.scaling.factor"),
            "original_max_position_embeddings": length,
            **yarn_betas(keys),
        }
    raise _unknown(file, f"rope.scaling.type is {kind!r}")


def yarn_betas(keys: Keys) -> dict[str, float]:
    """Where YaRN's ramp begins and ends, which newer files say."""
    return {
        "beta_fast": keys.number("rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": keys.number("rope.scaling.yarn_beta_slow", 1.0),
    }


def llama3_divisors(scaling: Llama3Scaling, theta: float, dim: int) -> np.ndarray:
    """What each of the dim/2 frequencies is divided by, fp32: 1 for short waves, `factor` for long ones (Llama 3.1)."""
    waves = 2 * math.pi * theta ** (np.arange(0, dim, 2, dtype=np.float64) / dim)
    turns = scaling.original_max_position_embeddings / waves
    blend = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blend = blend.clip(0, 1)
    return (1 / ((1 - blend) / scaling.factor + blend)).astype(np.float32)


def _llama3(file: GGUFFile, theta: float, dim: int) -> Llama3Scaling | None:
    """The scaling that gives the file's divisors, with Meta's bounds; None if none does."""
    if file.tensors[FREQUENCIES].shape != (dim // 2,):
        return None
    divisors = file.values(FREQUENCIES)
    factor = float(str(divisors.max()))
    if not 1 <= factor < math.inf:
        return None
    candidates = (
        Llama3Scaling(
            factor=factor, low_freq_factor=_LOW, high_freq_factor=_HIGH, original_max_position_embeddings=length
        )
        for length in _LENGTHS
    )
    fits = (s for s in candidates if np.allclose(llama3_divisors(s, theta, dim), divisors, rtol=1e-5, atol=0))
    return next(fits, None)


def _unknown(file: GGUFFile, reason: str) -> CheckpointError:
    return CheckpointError(f"{file.path}: {reason}, which is not read; take the model's original folder")
