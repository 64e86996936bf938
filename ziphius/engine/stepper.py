"""What a step does: the network reads, tokens are drawn and added, drafts are made.

B samples, D model, N tokens of a step, S rows of a draw.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ziphius.engine.cache import PagedMemory
from ziphius.engine.course import Demand
from ziphius.engine.forms import Forms
from ziphius.engine.lockstep import Lockstep
from ziphius.engine.pace import Pace
from ziphius.engine.passes import Passes
from ziphius.engine.reading import Reading
from ziphius.engine.sampling import Drawn, Sampler
from ziphius.engine.scheduler import Piece, Scheduler
from ziphius.engine.scoring import score_prompts
from ziphius.engine.sequence import Sequence
from ziphius.engine.settings import EngineSettings
from ziphius.engine.shaping import Bound, is_shaped
from ziphius.engine.speculation import Drafter, Span
from ziphius.model.transformer import Transformer
from ziphius.ops.backend import compute_dtype


@dataclass(slots=True)
class _Target:
    """A sequence that a step has read to its end: `read` tokens from position `start`, whose hidden states begin at
    row `first` of the step's. The last `draws` of them are drawn from. (A sample that starts from what another has
    read has read nothing, and draws from row `first`.)
    """

    sequence: Sequence
    first: int
    start: int
    read: int
    draws: int


class Stepper:
    """Takes what the scheduler plans through the model."""

    def __init__(self, model: Transformer, scheduler: Scheduler, settings: EngineSettings) -> None:
        """Raises ValueError for settings that do not fit the model."""
        config, weight, pool = model.config, model.model.embed_tokens.weight, scheduler.pool
        self.scheduler = scheduler
        self.memory = PagedMemory(config, pool.total, pool.block_size, compute_dtype(weight), weight.device)
        self.passes = Passes(model, self.memory, settings.batch_invariant)
        self.sampler = Sampler(settings.max_rows, config.vocab_size, weight.device)
        self.drafter = Drafter(self.passes, self.sampler)
        self.pace = Pace(settings, config.num_hidden_layers, config.num_nextn_predict_layers)
        self.reading = Reading(settings)
        self.forms = Forms()
        self.steps = self.generated = 0
        self._lockstep: Lockstep | None = None

    def disturb(self) -> None:
        """Who comes or goes otherwise than by ending in a step: look at everyone again."""
        self._lockstep = None

    @torch.no_grad()
    def step(self) -> list[Sequence]:
        """One step of all that run; those it drew for, and who may have ended."""
        depth = self.pace.depth(len(self.scheduler.running))
        lockstep = None if depth else self._lockstep
        if lockstep is not None and self.scheduler.grow(self._lacking(lockstep)):
            self.steps += 1
            return self._march(lockstep)
        self.forms.rouse()
        plan = self.scheduler.schedule(depth, self.reading.tokens())
        news = []
        if plan:
            self.steps += 1
            news = self._advance(plan, depth)
        else:
            self.forms.rest()
        self._lockstep = None if depth else self._lock()
        return news

    def _lock(self) -> Lockstep | None:
        """The running samples, if they can go in arrays and nobody can join them."""
        going = [sequence for sequence in self.scheduler.running if sequence.finish_reason is None]
        ends = len(going) < len(self.scheduler.running)
        if going and self.scheduler.is_closed(ends) and all(map(Lockstep.suits, going)):
            return Lockstep(going, self.memory.block_size)
        return None

    def _lacking(self, lockstep: Lockstep) -> list[Sequence]:
        """Those that need another block for their next entry."""
        size = self.memory.block_size
        return [s for s in lockstep.at_block_start() if len(s.blocks) * size <= s.computed]

    def _march(self, lockstep: Lockstep) -> list[Sequence]:
        """A step of samples that only decode."""
        began = time.perf_counter()
        rows_B, positions_B = lockstep.rows_B, lockstep.positions_B
        placement = self.passes.place_tokens(self.scheduler.tables_RM, rows_B, positions_B)
        hidden_BD = self.passes.read(lockstep.tokens_B, placement)
        ended = lockstep.take(self.sampler.draw(self.passes.logits(hidden_BD), rows_B, positions_B + 1))
        self.generated += len(rows_B)
        self.scheduler.shares.charge_rows()
        self.pace.note_step(len(rows_B), time.perf_counter() - began)
        for sequence in lockstep.at_block_start():
            sequence.register(self.scheduler.pool)
        news = lockstep.sequences
        if ended:
            lockstep.drop_ended()
            self._lockstep = lockstep if lockstep.sequences and self.scheduler.is_closed(True) else None
        return news

    def _advance(self, plan: list[Piece], depth: int) -> list[Sequence]:
        """A step of any pieces."""
        began = time.perf_counter()
        decoding = all(piece.sequence.decodes for piece in plan)
        for piece in plan:
            self.forms.ask(piece.sequence)
        hidden_ND, targets, spans = self._read(plan)
        score_prompts(self.passes.logits, hidden_ND, plan)
        copies = self._fork(targets)
        self._seat(depth)
        drawn, ended = self._hear(targets)
        if drawn:
            self._take(drawn, self._draw(hidden_ND, drawn))
        broken = [span.sequence for span in spans if span.sequence.error is not None]
        spans += [_span(target) for target in drawn + ended if target.read]
        read = time.perf_counter()
        if decoding:
            self.pace.note_step(len(hidden_ND), read - began)
        else:
            self.reading.note(len(hidden_ND), read - began)
        drafting = [span for span in spans if span.sequence.drafting and span.sequence.error is None]
        if depth and drafting:
            self.drafter.draft(hidden_ND, drafting, depth, self.scheduler.tables_RM)
            if decoding:
                self.pace.note_drafting(len(drafting), depth, time.perf_counter() - read)
        if copies:
            self.memory.copy_blocks([source for source, _ in copies], [target for _, target in copies])
        for span in spans:
            if span.sequence.computed // self.memory.block_size > span.sequence.registered:
                span.sequence.register(self.scheduler.pool)
        return [*(target.sequence for target in ended + drawn), *broken]

    def _hear(self, targets: list[_Target]) -> tuple[list[_Target], list[_Target]]:
        """Those to draw from, and those that have ended: their form turns out to be complete, or they were to write
        nothing. Who is late is neither, and reads its newest tokens once more."""
        self.forms.hear([target.sequence for target in targets])
        drawn, ended = [], []
        for target in targets:
            sequence = target.sequence
            if sequence.finish_reason is None and not sequence.late:
                sequence.end_at_limit()
            if sequence.finish_reason is not None and sequence.error is None:
                sequence.computed, sequence.drafts = len(sequence.tokens), []
                ended.append(target)
            elif not sequence.late:
                drawn.append(target)
        return drawn, ended

    def _read(self, plan: list[Piece]) -> tuple[Tensor, list[_Target], list[Span]]:
        """Hidden states of the pieces [N, D]; where to draw; and what was read of prompts that go on."""
        tokens: list[int] = []
        targets, spans = [], []
        for piece in plan:
            sequence, first, end = piece.sequence, len(tokens), piece.start + piece.count
            tokens += sequence.tokens[piece.start : end]
            if sequence.drafts:
                tokens += sequence.drafts
            drafts = len(sequence.drafts)
            if end == len(sequence.tokens) + drafts:
                targets.append(_Target(sequence, first, piece.start, piece.count, 1 + drafts))
            else:
                spans.append(Span(sequence, first, piece.start, piece.count))
                sequence.computed = end
        placement = self.passes.place(
            self.scheduler.tables_RM,
            [piece.sequence.row for piece in plan],
            [piece.start for piece in plan],
            [piece.count for piece in plan],
        )
        return self.passes.read(tokens, placement), targets, spans

    def _fork(self, targets: list[_Target]) -> list[tuple[int, int]]:
        """Start the other samples of prompts that have just been read; the blocks to copy for them."""
        copies = []
        for target in targets[:]:
            leader = target.sequence
            if leader.request.samples > 1 and not leader.generated:
                for sibling, source, own in self.scheduler.fork(leader):
                    targets.append(_Target(sibling, target.first + target.read - target.draws, sibling.computed, 0, 1))
                    copies.append((source, own))
        return copies

    def _seat(self, depth: int) -> None:
        """Give the settings of those who got a row to the sampler, and see who drafts."""
        for sequence in self.scheduler.seated:
            if sequence.row >= 0:  # it may have been sent back at once
                self.scheduler.subject = sequence
                self.sampler.seat(sequence)
                self.drafter.seat(sequence)
                sequence.drafting = self.drafter.modules
        self.scheduler.subject = None
        self.scheduler.seated.clear()
        for sequence in self.scheduler.running:
            sequence.drafting = min(sequence.drafting, depth)

    def _draw(self, hidden_ND: Tensor, targets: list[_Target]) -> Drawn:
        index: list[int] = []
        rows: list[int] = []
        places: list[int] = []
        bound: list[Bound] = []
        for target in targets:
            sequence, draws = target.sequence, target.draws
            first = target.first + max(target.read, 1) - draws
            length = len(sequence.tokens)
            if sequence.shaped:
                self.scheduler.subject = sequence
                bound += self._bounds(sequence, len(index))
            index += range(first, first + draws)
            rows += [sequence.row] * draws
            places += range(length, length + draws)
        self.scheduler.subject = None
        if index != list(range(len(hidden_ND))):
            hidden_ND = hidden_ND[torch.tensor(index, device=hidden_ND.device)]
        return self.sampler.draw(self.passes.logits(hidden_ND), np.array(rows), np.array(places), bound)

    def _bounds(self, sequence: Sequence, first: int) -> list[Bound]:
        """What binds its draws, the first of which is at row `first`; those behind a draft that cannot be are free."""
        always = is_shaped(sequence.request.settings)
        demands = [Demand()] * (1 + len(sequence.drafts))
        if sequence.course is not None and sequence.error is None:
            demands = sequence.course.look_ahead(sequence.drafts)
        return [
            Bound(first + place, sequence, sequence.drafts[:place], demand)
            for place, demand in enumerate(demands)
            if always or not demand.is_none
        ]

    def _take(self, targets: list[_Target], drawn: Drawn) -> None:
        """Add what was drawn to the samples: the first token, and on as long as the drafts were right."""
        first = 0
        offered, accepted = [], []
        for target in targets:
            sequence, drafts = target.sequence, target.sequence.drafts
            self.scheduler.subject = sequence
            before = len(sequence.tokens)
            right = self._extend(sequence, drawn, first, target.draws)
            taken = len(sequence.tokens) - before
            if target.read:
                sequence.computed = target.start + target.read - target.draws + max(taken, 1)
            if drafts:
                offered.append(len(drafts))
                accepted.append(right)
                sequence.drafted += len(drafts)
                sequence.accepted += right
                sequence.drafts = []
            self.sampler.shaper.count(sequence, sequence.tokens[before:])
            self.generated += taken
            first += target.draws
        self.scheduler.subject = None
        if offered:
            self.pace.note_drafts(offered, accepted)

    def _extend(self, sequence: Sequence, drawn: Drawn, first: int, draws: int) -> int:
        """Append tokens of the draw; how many drafts were right."""
        drafts = sequence.drafts
        for place in range(draws):
            token, logprob = drawn.tokens[first + place], drawn.logprobs[first + place]
            if sequence.error is not None or not sequence.stands(logprob):
                return place
            if drawn.top_logprobs is not None and (top := drawn.top_logprobs[first + place]) is not None:
                sequence.top_logprobs.append(top)
            right = place < len(drafts) and drafts[place] == token
            goes_on = sequence.append(token, logprob)
            if not (right and goes_on):
                return place + right
        return draws - 1


def _span(target: _Target) -> Span:
    """The hidden states of a target that stand: behind a draft that was wrong they do not."""
    settled = target.sequence.computed - target.start
    return Span(target.sequence, target.first, target.start, settled)
