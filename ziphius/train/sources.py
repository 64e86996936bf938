"""Where the batches of pretraining and fine-tuning come from. Each rank takes its share of one global order."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import torch

from ziphius.text.packing import PackedStream, Row, Sample, lay_row, plan_packing
from ziphius.text.store import lengths_of
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

    The order follows from the seed and the step alone, so there is no state to save. Of the samples only the lengths
    are held, and the rows of a step.
    """

    def __init__(
        self, samples: Sequence[Sample], place: Place, seq_len: int, rows: int, micro_rows: int, pad_id: int, seed: int
    ) -> None:
        """ValueError: no samples, or one that is empty or longer than `seq_len`."""
        if not samples:
            raise ValueError("there are no samples to learn from: give at least one")
        self.samples, self.place, self.seq_len, self.rows = samples, place, seq_len, rows
        self.micro_rows, self.pad_id, self.seed = micro_rows, pad_id, seed
        self._lengths = lengths_of(samples)
        self._epoch = -1
        self._plan: list[list[int]] = []
        self.steps_per_epoch = -(-len(self._plan_of(0)) // rows)  # of every epoch: it depends on the lengths alone

    def next_step(self, step: int) -> StepData:
        epoch, place = divmod(step, self.steps_per_epoch)
        plan = self._plan_of(epoch)[place * self.rows : (place + 1) * self.rows]
        rows = [lay_row([self.samples[index] for index in row], self.seq_len, self.pad_id) for row in plan]
        return StepData(share_rows(rows, self.place, self.micro_rows, masked=True))

    def _plan_of(self, epoch: int) -> list[list[int]]:
        """The samples of each row of an epoch, by number."""
        if epoch != self._epoch:
            order = list(range(len(self.samples)))
            Random(f"{self.seed}/{epoch}").shuffle(order)
            plan = plan_packing([self._lengths[index] for index in order], self.seq_len)
            self._plan, self._epoch = [[order[index] for index in row] for row in plan], epoch
        return self._plan

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass
