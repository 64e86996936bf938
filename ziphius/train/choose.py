"""Processes or threads? On a CPU a short trial on the model at hand decides."""

from __future__ import annotations

import torch

from ziphius.model.config import ModelConfig
from ziphius.train.place import Place
from ziphius.train.settings import TrainSettings
from ziphius.train.trial import step_seconds, trial

_STEPS, _ROUNDS = 5, 2
_MARGIN = 1.3  # threads must win by this: on a machine shared with others they lose far more than processes do


def processes_are_faster(config: ModelConfig, settings: TrainSettings, rows: int, length: int, place: Place) -> bool:
    """Time training steps of `rows` × `length` tokens: shared by all ranks, then by rank 0 with all threads alone.

    Every rank calls this and gets the same answer.
    """
    threads = torch.get_num_threads()
    shared = alone = float("inf")
    for _ in range(_ROUNDS):  # in turns, and the best of each: what else runs may come and go
        shared = min(shared, _quickest_step(config, settings, -(-rows // place.size), length, place))
        place.barrier()
        if place.is_main:
            torch.set_num_threads(threads * place.size)
            alone = min(alone, _quickest_step(config, settings, rows, length, place.alone()))
            torch.set_num_threads(threads)
        place.barrier()
    slowest = max(place.gather(shared))
    return bool(place.broadcast(slowest <= _MARGIN * alone))


def _quickest_step(config: ModelConfig, settings: TrainSettings, rows: int, length: int, place: Place) -> float:
    """Seconds of the quickest of a few steps on random tokens."""
    with trial(config, settings, rows, length, place) as trainer:
        return min(step_seconds(trainer, _STEPS))
