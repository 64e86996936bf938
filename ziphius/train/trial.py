"""Training steps on random tokens, to see how fast they are."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ziphius.model.config import ModelConfig
from ziphius.train.batch import Batch
from ziphius.train.losses import next_token_loss
from ziphius.train.place import Place
from ziphius.train.settings import LossSettings, TrainSettings
from ziphius.train.start import new_model
from ziphius.train.trainer import StepData, Trainer

WARM_UP = 2  # first calls build kernels and memory pools


@contextmanager
def trial(config: ModelConfig, settings: TrainSettings, rows: int, length: int, place: Place) -> Iterator[Trainer]:
    """A trainer whose `step()` takes the same `rows` × `length` random tokens again and again."""
    torch.manual_seed(0)
    model = new_model(config, 0, place)
    batch = Batch(torch.randint(0, config.vocab_size, (rows, length)), torch.ones(rows, length))
    with tempfile.TemporaryDirectory() as folder:
        loss = lambda m, b, norm: next_token_loss(m, b, LossSettings(), norm)
        yield Trainer(model, _Repeat(batch), loss, settings, Path(folder), place=place)


def step_seconds(trainer: Trainer, count: int, limit: float = float("inf")) -> list[float]:
    """Wall time of up to `count` steps after the warm-up, at least one, within about `limit` seconds in all."""
    end = time.perf_counter() + limit
    for _ in range(WARM_UP):
        trainer.step()
    trainer.place.wait()
    times: list[float] = []
    while len(times) < count and (not times or time.perf_counter() + times[-1] < end):
        began = time.perf_counter()
        trainer.step()
        trainer.place.wait()
        times.append(time.perf_counter() - began)
    return times


class _Repeat:
    """The same batch again and again."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def next_step(self, step: int) -> StepData:
        return StepData([self.batch])

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        pass
