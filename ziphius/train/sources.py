"""Where the batches of pretraining and fine-tuning come from. Each rank takes its share of one global order."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import torch

from ziphius.text.packing import PackedStream, Row, Sample, pack_samples
from ziphius.train.batch import Batch, stack_rows
from ziphius.train.place import Place
from ziphius.train.schedule import batch_rows
from ziphius.train.trainer import StepData


def share_rows(rows: Sequence[Row], place: Place, micro_rows: int, masked: bool) -> list[Batch]:
    """This rank's rows in micro-batches of at most `micro_rows`; a rank left without rows gets one that weighs 0."""
    mine = list(rows[place.rank :: place.size])
    if not mine:
        empty = stack_rows(rows[:1], masked)
        empty.weights = empty.weights * 0
        empty.valid = torch.zeros_like(empty.tokens, dtype=torch.bool)  # counted by the rank that it belongs to
        return [empty]
    return [stack_rows(mine[start : start + micro_rows], masked) for start in range(0, len(mine), micro_rows)]


class PretrainSource:
    """Rows of a packed stream, without a mask between documents (V3 §4.1)."""

    def __init__(
        self,
        stream: PackedStream,
        place: Place,
        rows: int,
        micro_rows: int,
        first_rows: int | None = None,
        warmup_steps: int = 0,
    ) -> None:
        self.stream, self.place, self.rows, self.micro_rows = stream, place, rows, micro_rows
        self.first_rows, self.warmup_steps = first_rows, warmup_steps

    def next_step(self, step: int) -> StepData:
        rows = self.stream.next_rows(batch_rows(step, self.rows, self.first_rows, self.warmup_steps))
        return StepData(share_rows(rows, self.place, self.micro_rows, masked=False))

    def state_dict(self) -> dict[str, Any]:
        return self.stream.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.stream.load_state_dict(state)


class SampleSource:
    """Epochs over a fixed set of samples, reshuffled each time, packed with a mask between samples (V3 §5.1).

    The order follows from the seed and the step alone, so there is no state to save.
    """

    def __init__(
        self, samples: Sequence[Sample], place: Place, seq_len: int, rows: int, micro_rows: int, pad_id: int, seed: int
    ) -> None:
        self.samples, self.place, self.seq_len, self.rows = list(samples), place, seq_len, rows
        self.micro_rows, self.pad_id, self.seed = micro_rows, pad_id, seed
        self._epoch = -1
        self._packed: list[Row] = []
        self.steps_per_epoch = -(-len(self._pack(0)) // rows)

    def next_step(self, step: int) -> StepData:
        epoch, number = divmod(step, self.steps_per_epoch)
        rows = self._pack(epoch)[number * self.rows : (number + 1) * self.rows]
        return StepData(share_rows(rows or self._pack(epoch)[-1:], self.place, self.micro_rows, masked=True))

    def _pack(self, epoch: int) -> list[Row]:
        if epoch != self._epoch:
            order = list(self.samples)
            Random(f"{self.seed}/{epoch}").shuffle(order)
            self._packed, self._epoch = pack_samples(order, self.seq_len, self.pad_id), epoch
        return self._packed

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass
