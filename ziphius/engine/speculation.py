"""Drafting with the model's own prediction modules (V3 §5.4.3).

The first module drafts the next token but one, from the network's state and the newest token; the second the token
behind, from the first one's state and its draft; and so on (V3 equations 21–23). Where more is to be drafted than there
are modules, the last goes on by itself.

A draft is drawn with the random number that its place will be drawn with, so that the network's draw, which alone
counts, mostly finds it right: what comes out is what plain sampling gives, token for token. Compare Leviathan et al.
2022 (arXiv 2211.17192), who accept more where distributions differ, but whose tokens then depend on the drafts;
Daliri, Musco, Suresh 2024 (arXiv 2408.07978) for drawing both with the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ziphius.engine.passes import Passes
from ziphius.engine.sampling import Sampler
from ziphius.engine.sequence import Sequence


@dataclass(slots=True)
class Span:
    """States of a sequence: `count` of them, from row `first` of a step's and position `start` on."""

    sequence: Sequence
    first: int
    start: int
    count: int

    @property
    def end(self) -> int:
        return self.start + self.count


class Drafter:
    """Keeps the prediction modules' entries up to date and draws drafts.

    Module k reads the state at position j, as the module before it left it, with the token at j + k. At the newest
    positions that token is a draft, and they are read again once it is settled.
    """

    def __init__(self, passes: Passes, sampler: Sampler) -> None:
        self.passes, self.sampler = passes, sampler
        self.modules = passes.model.config.num_nextn_predict_layers
        # by row and k: a state that k must read once more and no later step brings, with its position
        self._kept: dict[tuple[int, int], tuple[int, Tensor]] = {}

    def seat(self, sequence: Sequence) -> None:
        """Forget who had the row before."""
        for module in range(1, self.modules + 1):
            self._kept.pop((sequence.row, module), None)

    def draft(self, hidden_ND: Tensor, spans: list[Span], depth: int, tables_RM: np.ndarray) -> None:
        """Let the modules read what a step has settled, then draft up to `depth` tokens for those whose prompt has been
        read. A sequence uses the first `drafting` modules."""
        for modules in sorted({span.sequence.drafting for span in spans}):
            group = [span for span in spans if span.sequence.drafting == modules]
            self._draft(hidden_ND, group, min(modules, depth), depth, tables_RM)

    def _draft(self, states_ND: Tensor, spans: list[Span], modules: int, depth: int, tables_RM: np.ndarray) -> None:
        given, ends = spans, [span.end for span in spans]
        chain: list[tuple[Sequence, int]] = []  # with the row of its newest state
        read: list[tuple[int, Span, Tensor]] = []
        for module in range(1, modules + 1):
            states_ND, given = self._read(module, states_ND, given, ends, tables_RM)
            chain = [
                (span.sequence, span.first + span.count - 1)
                for span, end in zip(given, ends, strict=True)
                if span.end == end and self._goes_on(span.sequence, module)
            ]
            self._guess(states_ND, chain)
            read += [(module, span, states_ND) for span in given if span.count]
        for each in read:  # now that what was kept from the step before has been read
            self._settle(*each)
        for step in range(modules, depth):
            chain = [(sequence, place) for sequence, place in chain if self._goes_on(sequence, step + 1)]
            if not chain:
                return
            states_ND = states_ND[[place for _, place in chain]]
            starts = [len(sequence.tokens) - 1 + step - modules for sequence, _ in chain]
            placement = self.passes.place(tables_RM, [s.row for s, _ in chain], starts, [1] * len(chain))
            states_ND = self.passes.draft(modules, states_ND, [s.drafts[-1] for s, _ in chain], placement)
            chain = [(sequence, place) for place, (sequence, _) in enumerate(chain)]
            self._guess(states_ND, chain)

    def _read(
        self, module: int, states_ND: Tensor, given: list[Span], ends: Seq[int], tables_RM: np.ndarray
    ) -> tuple[Tensor, list[Span]]:
        """Let a module read the states `given`, as far as the tokens go; its own states."""
        index: list[int] = []
        tokens: list[int] = []
        kept: list[Tensor] = []
        spans: list[Span] = []
        for span, end in zip(given, ends, strict=True):
            sequence, begin = span.sequence, span.start
            before = self._kept.get((sequence.row, module))
            if before is not None and before[0] != begin - 1:
                before = None
            begin -= before is not None
            end = max(begin, min(end, len(sequence.tokens) + len(sequence.drafts) - module))
            if before is not None and end > begin:
                index.append(len(states_ND) + len(kept))
                kept.append(before[1])
            index += range(span.first, span.first + end - span.start)
            spans.append(Span(sequence, len(tokens), begin, end - begin))
            tokens += (sequence.tokens[begin + module : end + module] + sequence.drafts)[: end - begin]
        reading = [span for span in spans if span.count]
        if not reading:
            return states_ND[:0], spans
        if kept:
            states_ND = torch.cat([states_ND, torch.stack(kept)])
        placement = self.passes.place(
            tables_RM, [s.sequence.row for s in reading], [s.start for s in reading], [s.count for s in reading]
        )
        return self.passes.draft(module, states_ND[index], tokens, placement), spans

    def _settle(self, module: int, span: Span, states_ND: Tensor) -> None:
        """Keep the state that the next module cannot read for good yet."""
        row, length = span.sequence.row, len(span.sequence.tokens)
        settled, later = min(span.end, length - module), min(span.end, length - module - 1)
        if module < span.sequence.drafting and span.start <= later < settled:
            self._kept[row, module + 1] = later, states_ND[span.first + later - span.start].clone()

    def _guess(self, states_ND: Tensor, chain: list[tuple[Sequence, int]]) -> None:
        if not chain:
            return
        rows = np.array([sequence.row for sequence, _ in chain])
        places = np.array([len(sequence.tokens) + len(sequence.drafts) for sequence, _ in chain])
        logits = self.passes.logits(states_ND[[place for _, place in chain]])
        for (sequence, _), guess in zip(chain, self.sampler.guess(logits, rows, places), strict=True):
            sequence.drafts.append(guess)

    def _goes_on(self, sequence: Sequence, drafts: int) -> bool:
        """Whether it can take so many drafts: a token must be left for the network, and entries need blocks."""
        if not sequence.decodes or sequence.finish_reason is not None:
            return False
        held = len(sequence.blocks) * self.passes.memory.block_size
        return min(sequence.limit - 1, held) - len(sequence.tokens) >= drafts
