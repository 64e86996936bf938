"""Processes or threads? A short trial on the model at hand decides."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from ziphius.model.config import ModelConfig
from ziphius.model.transformer import Transformer
from ziphius.train.batch import Batch
from ziphius.train.distributed import World
from ziphius.train.losses import next_token_loss
from ziphius.train.settings import LossSettings, TrainSettings
from ziphius.train.trainer import StepData, Trainer

_STEPS = 4
_MARGIN = 1.3  # threads must win by this: on a machine shared with others they lose far more than processes do


def processes_are_faster(config: ModelConfig, settings: TrainSettings, rows: int, length: int, world: World) -> bool:
    """Time training steps of `rows` × `length` tokens: shared by all ranks, then by rank 0 with all threads alone.

    Every rank calls this and gets the same answer.
    """
    threads = torch.get_num_threads()
    shared = _time_steps(config, settings, -(-rows // world.size), length, world)
    world.barrier()
    alone = 0.0
    if world.is_main:
        torch.set_num_threads(threads * world.size)
        alone = _time_steps(config, settings, rows, length, World())
        torch.set_num_threads(threads)
    slowest = max(world.gather(shared))
    return bool(world.broadcast(slowest <= _MARGIN * alone))


def _time_steps(config: ModelConfig, settings: TrainSettings, rows: int, length: int, world: World) -> float:
    """Seconds of the quicker half of a few steps on random tokens."""
    torch.manual_seed(0)
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(0))
    tokens = torch.randint(0, config.vocab_size, (rows, length))
    batch = Batch(tokens, torch.ones(rows, length))
    with tempfile.TemporaryDirectory() as folder:
        loss = lambda m, b, norm: next_token_loss(m, b, LossSettings(), norm)
        trainer = Trainer(model, _Repeat(batch), loss, settings, Path(folder), world=world)
        times = [_timed(trainer.step) for _ in range(2 + 2 * _STEPS)][2:]
    return sum(sorted(times)[:_STEPS])


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


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
