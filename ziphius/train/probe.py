"""How fast this machine trains: measured, for a plan that rests on it."""

from __future__ import annotations

from statistics import median

from ziphius.cost.flops import train_flops_per_token
from ziphius.model.config import ModelConfig
from ziphius.train.settings import TrainSettings
from ziphius.train.trial import step_seconds, trial

_TOKENS = 2048  # a step's tokens: enough that calls do not dominate, few enough that a step ends


def measure_training(config: ModelConfig, seq_len: int, seconds: float) -> float:
    """Model FLOPs a second (with multi-token prediction) of training steps in BF16 with this process's threads.

    Takes about `seconds` for small networks; at least three steps are made, two of them to warm up.
    """
    length = min(seq_len, _TOKENS)
    rows = max(1, _TOKENS // length)
    with trial(config, TrainSettings(steps=1), rows, length) as trainer:
        times = step_seconds(trainer, count=1000, limit=seconds)
    return rows * length * train_flops_per_token(config, length, mtp=True) / median(times)
