"""Passes of the network over the pieces of a step.

N tokens of a step, B sequences, D model, R rows, M blocks of a row's table.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ziphius.engine.cache import PagedMemory
from ziphius.engine.forward import draft_hidden, is_batch_invariant, next_logits, step_hidden
from ziphius.engine.graphs import StepGraphs, recorder_for
from ziphius.model.transformer import Transformer
from ziphius.ops.placement import Placement


class Passes:
    """The model and its cache, asked by rows and positions. `apart`: no token's result depends on its company."""

    def __init__(self, model: Transformer, memory: PagedMemory, apart: bool) -> None:
        self.model, self.memory = model, memory
        self.device = memory.data.device
        self._one_by_one = apart and not is_batch_invariant(model, memory)
        recorder = recorder_for(self.device)
        self._graphs = None if recorder is None else StepGraphs(model, memory, recorder)
        self._last: tuple[Tensor, Tensor] | None = None  # hidden states of a recorded step, and their logits

    def place(
        self, tables_RM: np.ndarray, rows_B: Sequence[int], starts_B: Sequence[int], counts_B: Sequence[int]
    ) -> Placement:
        """Where `counts_B` tokens of each sequence stand, from position `starts_B` on."""
        rows, positions = np.array(rows_B, np.int32), np.array(starts_B, np.int64)
        if max(counts_B) > 1:
            counts = np.array(counts_B)
            before = counts.cumsum() - counts
            rows = rows.repeat(counts)
            positions = (positions - before).repeat(counts) + np.arange(len(rows))
        return self.place_tokens(tables_RM, rows, positions, max(counts_B))

    def place_tokens(self, tables_RM: np.ndarray, rows: np.ndarray, positions: np.ndarray, most: int = 1) -> Placement:
        """Where tokens stand, each with its int32 row and int64 position; no row has more than `most`. On the CPU."""
        size = self.memory.block_size
        slots = tables_RM[rows, positions // size] * np.int64(size) + positions % size
        t = torch.from_numpy
        return Placement(t(rows), t(positions), t(slots), t(tables_RM), size, most)

    def read(self, tokens: Sequence[int] | np.ndarray, placement: Placement) -> Tensor:
        """Hidden states [N, D] of the network, which hold until the next step."""
        tokens_N = torch.from_numpy(np.asarray(tokens, np.int64))
        if not self._one_by_one:
            return self._step(tokens_N, placement)
        alone = [self._step(tokens_N[n : n + 1], _only(placement, n)).clone() for n in range(len(tokens_N))]
        return torch.cat(alone)

    def _step(self, tokens_N: Tensor, placement: Placement) -> Tensor:
        self._last = None
        if self._graphs is not None and self._graphs.take(placement):
            self._last = self._graphs.run(tokens_N, placement)
            if self._last is not None:
                return self._last[0]
        return step_hidden(self.model, tokens_N.to(self.device), placement.to(self.device), self.memory)

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """fp32 logits [N, W], which hold until the next step."""
        if self._last is not None and hidden_ND is self._last[0]:
            return self._last[1]
        if not self._one_by_one:
            return next_logits(self.model, hidden_ND)
        return torch.cat([next_logits(self.model, hidden_1D) for hidden_1D in hidden_ND.split(1)])

    def draft(self, module: int, hidden_ND: Tensor, tokens: Sequence[int], placement: Placement) -> Tensor:
        """States [N, D] of a prediction module, from 1. Drafts are only guesses: their rounding is free."""
        tokens_N = torch.from_numpy(np.array(tokens, np.int64)).to(self.device)
        return draft_hidden(self.model, module, hidden_ND, tokens_N, placement.to(self.device), self.memory)


def _only(placement: Placement, n: int) -> Placement:
    here = slice(n, n + 1)
    return Placement(
        placement.rows_N[here],
        placement.positions_N[here],
        placement.slots_N[here],
        placement.tables_BM,
        placement.block_size,
        most=1,
    )
