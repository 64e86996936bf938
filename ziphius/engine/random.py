"""Random numbers that depend on seed, sample and place alone, whoever else is being served.

SplitMix64 as a counter-based generator (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators").
"""

from __future__ import annotations

import numpy as np

_STEP = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1


def sample_key(seed: int, sample: int) -> int:
    """The key of one sample's numbers, 64 bits."""
    key = _mix(np.array([seed & _MASK], np.uint64))
    return int(_mix(key + np.uint64((sample + 1) * _STEP & _MASK))[0])


def uniforms(keys: np.ndarray, places: np.ndarray) -> np.ndarray:
    """float32 in [0, 1) for uint64 `keys` at int64 `places`, of the same shape."""
    bits = _mix(keys + (places.astype(np.uint64) + np.uint64(1)) * np.uint64(_STEP))
    return (bits >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
