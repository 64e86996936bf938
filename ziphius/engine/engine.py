"""The engine: requests in, tokens out, one step at a time.

D model, N tokens of a step, S rows of a draw.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ziphius.engine.admission import Admission
from ziphius.engine.blocks import BlockPool
from ziphius.engine.cache import LatentMemory
from ziphius.engine.fingerprint import fingerprint
from ziphius.engine.grammar import GrammarError
from ziphius.engine.lockstep import Lockstep
from ziphius.engine.pace import Pace
from ziphius.engine.passes import Passes
from ziphius.engine.request import EngineStats, FinishReason, Request, Update
from ziphius.engine.sampling import Bound, Drawn, Sampler
from ziphius.engine.scheduler import Piece, Scheduler
from ziphius.engine.sequence import Sequence
from ziphius.engine.settings import EngineSettings
from ziphius.engine.sizes import pool_blocks
from ziphius.engine.speculation import Drafter, Span
from ziphius.model.transformer import Transformer
from ziphius.ops.backend import compute_dtype
from ziphius.text.tokenizer import Tokenizer


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


class Engine:
    """Samples from a model for many requests at once. Not thread-safe: one thread calls it.

    `tokenizer` may be None where no request has stop strings, a thinking budget or a constraint. The model's weights
    are used in place; who changes them calls `weights_changed`. The cache takes the dtype of the caller's autocast, so
    all steps run in that one.
    """

    def __init__(self, model: Transformer, tokenizer: Tokenizer | None, settings: EngineSettings | None = None) -> None:
        """Raises ValueError for settings that do not fit the model."""
        self.model, self.settings = model, settings or EngineSettings()
        s, config, weight = self.settings, model.config, model.lm_head.weight
        dtype = compute_dtype(weight)
        pool = BlockPool(pool_blocks(s, config, dtype.itemsize), s.block_size, s.prefix_cache)
        self.memory = LatentMemory(config, pool.total, s.block_size, dtype, weight.device)
        self.scheduler = Scheduler(pool, s.max_rows, s.max_batch_tokens)
        self.passes = Passes(model, self.memory, s.batch_invariant)
        self.sampler = Sampler(s.max_rows, config.vocab_size, weight.device)
        self.drafter = Drafter(self.passes, self.sampler)
        self.pace = Pace(s, config.num_hidden_layers, config.num_nextn_predict_layers)
        self._admission = Admission(config, tokenizer, pool.total * s.block_size)
        self._requests: dict[int, list[Sequence]] = {}
        self._notices: list[Update] = []
        self._next_id = 0
        self._fingerprint: str | None = None
        self._steps = self._generated = 0
        self._lockstep: Lockstep | None = None

    # --- requests ----------------------------------------------------------------------------------------------------

    def add(self, request: Request) -> int:
        """Queue a request; its id. Raises ValueError for what cannot be served."""
        sequences = self._admission.sequences(self._next_id, request)
        self._lockstep = None
        self._requests[self._next_id] = sequences
        for sequence in sequences:
            self.scheduler.add(sequence)
        self._next_id += 1
        return self._next_id - 1

    def cancel(self, id: int) -> None:
        """End a request; its blocks are free at once. The next step's updates say so. Unknown ids are let be."""
        self._lockstep = None
        for sequence in self._requests.get(id, [])[:]:
            self._finish(sequence, "cancelled")
            self._notices.append(self._update(sequence))

    @property
    def has_work(self) -> bool:
        """Whether `step` has something to do or to say."""
        return bool(self._requests or self._notices)

    def weights_changed(self) -> None:
        """Forget what was computed with the old weights; running samples are read anew with the new ones."""
        self._lockstep = None
        for sequence in self.scheduler.running[:]:
            self.scheduler.preempt(sequence)
        self.scheduler.pool.forget_all()
        self._fingerprint = None

    @property
    def fingerprint(self) -> str:
        """A name of the present weights, `fp_` and 10 hex digits."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint(self.model)
        return self._fingerprint

    def stats(self) -> EngineStats:
        scheduler, pool = self.scheduler, self.scheduler.pool
        return EngineStats(
            blocks_total=pool.total,
            blocks_used=pool.used,
            blocks_cached=pool.cached,
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            preemptions=scheduler.preemptions,
            hit_tokens=scheduler.hit_tokens,
            miss_tokens=scheduler.miss_tokens,
            generated_tokens=self._generated,
            drafted_tokens=self.pace.drafted,
            accepted_tokens=self.pace.accepted,
            steps=self._steps,
        )

    # --- a step ------------------------------------------------------------------------------------------------------

    def updates(self) -> list[Update]:
        """What there is to say without a step: the ends of cancelled requests."""
        notices, self._notices = self._notices, []
        return notices

    @torch.no_grad()
    def step(self) -> list[Update]:
        """One pass of the network for what is running, and what it brought."""
        updates = self.updates()
        depth = self.pace.depth(len(self.scheduler.running))
        if self._lockstep is not None and not depth and self.scheduler.grow(self._lacking(self._lockstep)):
            return updates + self._march(self._lockstep)
        plan = self.scheduler.schedule(lookahead=depth)
        if plan:
            updates += self._advance(plan, depth)
        self._lockstep = self._lock() if not depth else None
        return updates

    def _lock(self) -> Lockstep | None:
        """The running samples, if they can go in arrays and nobody waits to join them."""
        running = self.scheduler.running
        if running and not self.scheduler.waiting and all(map(Lockstep.suits, running)):
            return Lockstep(running[:], self.settings.block_size)
        return None

    def _lacking(self, lockstep: Lockstep) -> list[Sequence]:
        """Those that need another block for their next entry."""
        size = self.settings.block_size
        return [s for s in lockstep.at_block_start() if len(s.blocks) * size <= s.computed]

    def _march(self, lockstep: Lockstep) -> list[Update]:
        """A step of samples that only decode."""
        began = time.perf_counter()
        rows_B, positions_B = lockstep.rows_B, lockstep.positions_B
        placement = self.passes.place_tokens(self.scheduler.tables_RM, rows_B, positions_B)
        hidden_BD = self.passes.read(lockstep.tokens_B, placement)
        ended = lockstep.take(self.sampler.draw(self.passes.logits(hidden_BD), rows_B, positions_B + 1))
        self._steps += 1
        self._generated += len(rows_B)
        self.pace.note_step(len(rows_B), time.perf_counter() - began)
        for sequence in lockstep.at_block_start():
            sequence.register(self.scheduler.pool)
        updates = []
        for sequence in ended:
            self._finish(sequence, sequence.finish_reason or "stop")
        for sequence in lockstep.sequences:
            if sequence.finish_reason is not None or sequence.request.stream:
                updates.append(self._update(sequence))
        if ended:
            lockstep.drop_ended()
            self._lockstep = lockstep if lockstep.sequences else None
        return updates

    def _advance(self, plan: list[Piece], depth: int) -> list[Update]:
        began = time.perf_counter()
        self._steps += 1
        decoding = all(piece.sequence.decodes for piece in plan)
        hidden_ND, targets, spans = self._read(plan)
        copies = self._fork(targets)
        self._seat(depth)
        if targets:
            self._take(targets, self._draw(hidden_ND, targets))
        spans += [_span(target) for target in targets if target.read]
        read = time.perf_counter()
        if decoding:
            self.pace.note_step(len(hidden_ND), read - began)
        drafting = [span for span in spans if span.sequence.drafting and span.sequence.error is None]
        if depth and drafting:
            self.drafter.draft(hidden_ND, drafting, depth, self.scheduler.tables_RM)
            if decoding:
                self.pace.note_drafting(len(drafting), depth, time.perf_counter() - read)
        if copies:
            self.memory.copy_blocks([source for source, _ in copies], [target for _, target in copies])
        for span in spans:
            if span.sequence.computed // self.settings.block_size > span.sequence.registered:
                span.sequence.register(self.scheduler.pool)
        return self._report(targets)

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
                    targets.append(_Target(sibling, target.first + target.read - 1, sibling.computed, 0, 1))
                    copies.append((source, own))
        return copies

    def _seat(self, depth: int) -> None:
        """Give the settings of those who got a row to the sampler, and see who drafts."""
        for sequence in self.scheduler.seated:
            self.sampler.seat(sequence)
            sequence.drafting = depth > 0
        self.scheduler.seated.clear()
        if not depth:
            for sequence in self.scheduler.running:
                sequence.drafting = False

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
                bound += self._bounds(sequence, len(index))
            index += range(first, first + draws)
            rows += [sequence.row] * draws
            places += range(length, length + draws)
        if index != list(range(len(hidden_ND))):
            hidden_ND = hidden_ND[torch.tensor(index, device=hidden_ND.device)]
        return self.sampler.draw(self.passes.logits(hidden_ND), np.array(rows), np.array(places), bound)

    def _bounds(self, sequence: Sequence, first: int) -> list[Bound]:
        """What binds its draws, the first of which is at row `first`; those behind a draft that cannot be are free."""
        demands: list[tuple[int | None, np.ndarray | None]] = [(None, None)] * (1 + len(sequence.drafts))
        if sequence.course is not None:
            try:
                demands = sequence.course.look_ahead(sequence.drafts)
            except GrammarError as error:
                sequence.break_off(str(error))
        return [
            Bound(first + place, sequence, sequence.drafts[:place], forced, allowed)
            for place, (forced, allowed) in enumerate(demands)
        ]

    def _take(self, targets: list[_Target], drawn: Drawn) -> None:
        """Add what was drawn to the samples: the first token, and on as long as the drafts were right."""
        first = 0
        offered, accepted = [], []
        for target in targets:
            sequence, drafts = target.sequence, target.sequence.drafts
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
            self._generated += taken
            first += target.draws
        if offered:
            self.pace.note_drafts(offered, accepted)

    def _extend(self, sequence: Sequence, drawn: Drawn, first: int, draws: int) -> int:
        """Append tokens of the draw; how many drafts were right."""
        drafts = sequence.drafts
        for place in range(draws):
            token, logprob = drawn.tokens[first + place], drawn.logprobs[first + place]
            if sequence.error is None and not logprob > -math.inf:
                sequence.break_off("the network gave no finite numbers")
            if sequence.error is not None:
                return place
            if drawn.top_logprobs is not None and (top := drawn.top_logprobs[first + place]) is not None:
                sequence.top_logprobs.append(top)
            right = place < len(drafts) and drafts[place] == token
            try:
                goes_on = sequence.append(token, logprob)
            except GrammarError as error:
                sequence.break_off(str(error))
                goes_on = False
            if not (right and goes_on):
                return place + right
        return draws - 1

    # --- what is said of it ------------------------------------------------------------------------------------------

    def _report(self, targets: list[_Target]) -> list[Update]:
        updates = []
        for target in targets:
            sequence = target.sequence
            if sequence.finish_reason is not None:
                self._finish(sequence, sequence.finish_reason)
                updates.append(self._update(sequence))
            elif sequence.request.stream:
                updates.append(self._update(sequence))
        return updates

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        sequence.finish_reason = reason
        if reason == "error":
            self._cleanse(sequence)
        self.scheduler.remove(sequence)
        siblings = self._requests[sequence.id]
        siblings.remove(sequence)
        if not siblings:
            del self._requests[sequence.id]

    def _cleanse(self, sequence: Sequence) -> None:
        """Numbers that are not finite would spread to whoever gets the block next, for zero times them is not zero."""
        pool = self.scheduler.pool
        own = [block for block in sequence.blocks if pool.holders(block) == 1]
        pool.forget(own)
        self.memory.clear_blocks(own)

    def _update(self, sequence: Sequence) -> Update:
        """What is new of a sample."""
        told, sequence.reported = sequence.reported, sequence.generated
        return Update(
            id=sequence.id,
            sample=sequence.sample,
            token_ids=sequence.tokens[sequence.prompt_length + told :],
            logprobs=sequence.logprobs[told:],
            top_logprobs=None if sequence.request.settings.logprobs is None else sequence.top_logprobs[told:],
            finish_reason=sequence.finish_reason,
            stop_string=sequence.stop_string,
            cached_tokens=max(sequence.cached_tokens, 0),
            accepted_drafts=sequence.accepted,
            drafted=sequence.drafted,
            error=sequence.error,
        )


def _span(target: _Target) -> Span:
    """The hidden states of a target that stand: behind a draft that was wrong they do not."""
    settled = target.sequence.computed - target.start
    return Span(target.sequence, target.first, target.start, settled)
