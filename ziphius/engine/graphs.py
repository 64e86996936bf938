"""Steps of few tokens, recorded once and played again: on a GPU a step of decoding is otherwise mostly its launching.

N tokens of a step, D model, W vocabulary, M blocks of a token's table.
"""

from __future__ import annotations

import warnings
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ziphius.engine.cache import PagedMemory
from ziphius.engine.forward import next_logits, step_hidden
from ziphius.model.transformer import Transformer
from ziphius.ops.experts import UNCOUNTED_TOKENS
from ziphius.ops.paged import uses_kernel
from ziphius.ops.placement import Placement

# A step takes the next larger of these sizes: at most half of its tokens, mostly less than a third, are padding.
SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, UNCOUNTED_TOKENS)
_NARROWEST = 1024  # tokens that the tables of the smallest graph have room for; wider ones double

Work = Callable[[], None]


class Recorder(Protocol):
    """Takes work on fixed tensors and gives back what does it again."""

    def __call__(self, work: Work) -> Work: ...


class CudaRecorder:
    """CUDA graphs, which share one pool of memory: they are played one at a time, and keep nothing of their own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Work) -> Work:
        with torch.cuda.device(self._device):
            aside = torch.cuda.Stream()  # what is loaded or compiled on first use must be there before
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                work()
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, self._pool, aside, capture_error_mode="thread_local"):
                work()
        return graph.replay


def recorder_for(device: torch.device) -> Recorder | None:
    """None where there is nothing to gain."""
    return CudaRecorder(device) if device.type == "cuda" else None


@dataclass(slots=True)
class _Graph:
    """The inputs of a recorded step, and what plays it."""

    numbers_3N: Tensor  # tokens, positions, slots
    tables_NM: Tensor
    play: Work
    held: tuple[Tensor, Tensor]  # the table of angles that it reads, which the model may replace


class StepGraphs:
    """Hidden states and logits of steps from recordings, one for each size and width of tables, made when first needed.

    Every token has a line of the tables to itself. Tokens that only fill up a recording stand at the first place of the
    memory's spare block. Results lie in the same tensors each time and hold until the next step.
    """

    def __init__(self, model: Transformer, memory: PagedMemory, record: Recorder) -> None:
        self.model, self.memory, self._record = model, memory, record
        self._graphs: dict[tuple[int, int], _Graph] = {}
        self._weights: list[Tensor] = []
        self._addresses: list[int] = []
        self._results: tuple[Tensor, Tensor] | None = None
        self._refused = False

    def take(self, placement: Placement) -> bool:
        """Whether a recording can serve these tokens: few, and each with the decoding kernel, which asks nothing of the
        host while it runs."""
        if self._refused or len(placement.rows_N) > SIZES[-1]:
            return False
        return uses_kernel(self.memory.data, self.model.model.embed_tokens.weight, self.memory.layout, placement.most)

    @torch.no_grad()
    def run(self, tokens_N: Tensor, placement: Placement) -> tuple[Tensor, Tensor] | None:
        """Hidden states [N, D] and fp32 logits [N, W]; None, and never again, where recording fails. Inputs are on the
        CPU."""
        self._forget_what_moved()
        N = len(tokens_N)
        size = SIZES[bisect_left(SIZES, N)]
        needed = int(placement.positions_N.max()) // placement.block_size + 1
        width = max(-(-_NARROWEST // placement.block_size), 1 << (needed - 1).bit_length())
        graph = self._graphs.get((size, width))
        if graph is None:
            inputs = self._inputs(size, width)
            self._fill(*inputs, tokens_N, placement, needed)
            try:
                play = self._record(self._work(*inputs))
            except RuntimeError as error:
                self._refused = True
                reason = " ".join(str(error).split())[:200]
                warnings.warn(f"decoding goes on without CUDA graphs, more slowly: {reason}", stacklevel=2)
                return None
            graph = self._graphs[size, width] = _Graph(*inputs, play, self.model.rope(None, 1))
        else:
            self._fill(graph.numbers_3N, graph.tables_NM, tokens_N, placement, needed)
        graph.play()
        assert self._results is not None
        hidden, logits = self._results
        return hidden[:N], logits[:N]

    def _forget_what_moved(self) -> None:
        """A recording reads the weights where they lay; what is changed in place it sees."""
        if not self._weights or self._addresses != [weight.data_ptr() for weight in self._weights]:
            self._graphs.clear()
            self._weights = [*self.model.parameters(), *self.model.buffers()]
            self._addresses = [weight.data_ptr() for weight in self._weights]

    def _inputs(self, size: int, width: int) -> tuple[Tensor, Tensor]:
        device = self.memory.data.device
        return (
            torch.zeros(3, size, dtype=torch.int64, device=device),
            torch.zeros(size, width, dtype=torch.int32, device=device),
        )

    def _fill(self, numbers_3N: Tensor, tables_NM: Tensor, tokens: Tensor, placement: Placement, needed: int) -> None:
        N, spare = len(tokens), self.memory.spare
        numbers = np.zeros(numbers_3N.shape, np.int64)
        numbers[2] = spare * placement.block_size
        for line, values in zip(numbers, (tokens, placement.positions_N, placement.slots_N), strict=True):
            line[:N] = values.numpy()
        tables = np.full((len(tables_NM), needed), spare, np.int32)
        tables[:N] = placement.tables_BM.numpy()[placement.rows_N.numpy(), :needed]
        numbers_3N.copy_(torch.from_numpy(numbers))
        tables_NM[:, :needed].copy_(torch.from_numpy(tables))

    def _work(self, numbers_3N: Tensor, tables_NM: Tensor) -> Work:
        tokens_N, positions_N, slots_N = numbers_3N
        rows_N = torch.arange(len(tokens_N), dtype=torch.int32, device=tokens_N.device)
        placement = Placement(rows_N, positions_N, slots_N, tables_NM, self.memory.block_size, most=1)
        model, memory, kind = self.model, self.memory, tokens_N.device.type
        autocast = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)

        def work() -> None:
            # no cache of cast weights: a recording would read one after it is gone
            with torch.autocast(kind, autocast[1], enabled=autocast[0], cache_enabled=False):
                hidden_ND = step_hidden(model, tokens_N, placement, memory)
                logits_NW = next_logits(model, hidden_ND)
            for kept, found in zip(self._kept(hidden_ND, logits_NW), (hidden_ND, logits_NW), strict=True):
                kept[: len(found)].copy_(found)

        return work

    def _kept(self, hidden_ND: Tensor, logits_NW: Tensor) -> tuple[Tensor, Tensor]:
        """The tensors for results, made in the first run, outside of any recording."""
        if self._results is None:
            self._results = (
                hidden_ND.new_empty(SIZES[-1], hidden_ND.shape[1]),
                logits_NW.new_empty(SIZES[-1], logits_NW.shape[1]),
            )
        return self._results
