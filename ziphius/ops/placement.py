"""Where the tokens of a step stand in a paged cache, and what an entry of it holds.

N tokens of a step over all sequences, B sequences, M blocks of a sequence's table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Layout(Protocol):
    """An entry's parts; `model.config.CacheLayout` explains them."""

    @property
    def heads(self) -> int: ...
    @property
    def key(self) -> int: ...
    @property
    def value(self) -> int: ...
    @property
    def value_start(self) -> int: ...
    @property
    def width(self) -> int: ...


@dataclass
class Placement:
    """Where the tokens of one step stand. A sequence's tokens lie side by side, in order.

    `slots_N` is where each token's entry is stored: `tables_BM[row, position // block_size] · block_size + position %
    block_size`. `rows_N` names its line of `tables_BM` (both int32), `positions_N` (int64) its place in the sequence.
    `most` is the largest number of tokens of one sequence, 0 where only the device could tell.
    """

    rows_N: Tensor
    positions_N: Tensor
    slots_N: Tensor
    tables_BM: Tensor
    block_size: int
    most: int = 0

    @classmethod
    def of(cls, rows_N: Tensor, positions_N: Tensor, tables_BM: Tensor, block_size: int) -> Placement:
        """A placement whose slots follow from the tables."""
        blocks_N = tables_BM[rows_N.long(), positions_N // block_size].long()
        return cls(rows_N, positions_N, blocks_N * block_size + positions_N % block_size, tables_BM, block_size)

    def to(self, device: torch.device) -> Placement:
        """This one, made on the CPU, for `device`: with no more of the tables than its tokens need."""
        if device.type == "cpu":
            return self
        lines, rows_N = torch.unique(self.rows_N, return_inverse=True)
        tables_BM = self.tables_BM[lines, : int(self.positions_N.max()) // self.block_size + 1]
        rows_N, positions_N, slots_N = (x.to(device) for x in (rows_N.int(), self.positions_N, self.slots_N))
        return Placement(rows_N, positions_N, slots_N, tables_BM.to(device), self.block_size, self.most)
