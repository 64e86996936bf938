"""The engine: requests in, tokens out, one step at a time."""

from __future__ import annotations

import threading
from collections.abc import Collection
from contextlib import AbstractContextManager

from ziphius.engine.admission import Admission
from ziphius.engine.blocks import BlockPool
from ziphius.engine.faults import is_fault
from ziphius.engine.fingerprint import fingerprint
from ziphius.engine.request import EngineStats, Request, Update
from ziphius.engine.scheduler import Scheduler
from ziphius.engine.sequence import Sequence
from ziphius.engine.settings import EngineSettings
from ziphius.engine.sizes import block_bytes, pool_blocks, refuse_too_large
from ziphius.engine.stepper import Stepper
from ziphius.model.transformer import Transformer
from ziphius.ops.backend import compute_dtype
from ziphius.text.tokenizer import Tokenizer

_REWINDS = 3  # tries


class Engine:
    """Samples from a model for many requests at once. Not thread-safe: one thread calls it.

    `tokenizer` may be None where no request has stop strings, a thinking budget or a constraint. The model's weights
    are used in place; who changes them calls `weights_changed`. The cache takes the dtype of the caller's autocast, so
    all steps run in that one.
    """

    def __init__(self, model: Transformer, tokenizer: Tokenizer | None, settings: EngineSettings | None = None) -> None:
        """Raises ValueError for settings that do not fit the model, or this machine's memory."""
        self.model, self.settings = model, settings or EngineSettings()
        s = self.settings
        weight = model.model.embed_tokens.weight
        element_bytes = compute_dtype(weight).itemsize
        blocks = pool_blocks(s, model.config, element_bytes)
        if weight.device.type == "cpu" and (s.memory_gib or s.blocks):
            refuse_too_large(blocks, block_bytes(model.config, s.block_size, element_bytes))
        self.scheduler = Scheduler(BlockPool(blocks, s.block_size, s.prefix_cache), s.max_rows, s.max_batch_tokens)
        self.stepper = Stepper(model, self.scheduler, s)
        self._admission = Admission(model.config, tokenizer, blocks * s.block_size, s)
        self._requests: dict[int, list[Sequence]] = {}
        self._notices: list[Update] = []
        self._next_id = 0
        self._fingerprint: str | None = None

    # --- requests ----------------------------------------------------------------------------------------------------

    def prepared(self, request: Request, abandoned: threading.Event) -> AbstractContextManager[object]:
        """Within it, `add` has done already what of it may take seconds; another thread may enter.

        Raises ValueError for a constraint that cannot be used, Abandoned once that is set.
        """
        return self._admission.prepared(request, abandoned)

    def add(self, request: Request) -> int:
        """Queue a request; its id. Raises ValueError for what cannot be served."""
        sequences = self._admission.sequences(self._next_id, request)
        self.stepper.disturb()
        for sequence in sequences:
            self.scheduler.add(sequence)
        id, self._next_id = self._next_id, self._next_id + 1
        self._requests[id] = sequences
        return id

    def cancel(self, id: int) -> None:
        """End a request; its blocks are free at once. The next step's updates say so. Unknown ids are let be."""
        self.stepper.disturb()
        for sequence in self._requests.get(id, [])[:]:
            sequence.finish_reason = "cancelled"
            self._end(sequence)

    @property
    def has_work(self) -> bool:
        """Whether `step` has something to do or to say."""
        return bool(self._requests or self._notices)

    def weights_changed(self) -> None:
        """Forget what was computed with the old weights; running samples are read anew with the new ones."""
        self.stepper.disturb()
        for sequence in self.scheduler.running[:]:
            self.scheduler.preempt(sequence)
        for sequence in self.under_way():
            if sequence.scores is not None:
                sequence.scores.clear()
        self.scheduler.pool.forget_all()
        self._fingerprint = None

    @property
    def fingerprint(self) -> str:
        """A name of the present weights, `fp_` and 10 hex digits."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint(self.model)
        return self._fingerprint

    def stats(self) -> EngineStats:
        scheduler, pool, shares = self.scheduler, self.scheduler.pool, self.scheduler.shares
        return EngineStats(
            blocks_total=pool.total,
            blocks_used=pool.used,
            blocks_cached=pool.cached,
            running=len(scheduler.running),
            waiting=shares.samples.total() - len(scheduler.running),
            preemptions=scheduler.preemptions,
            hit_tokens=scheduler.hit_tokens,
            miss_tokens=scheduler.miss_tokens,
            generated_tokens=self.stepper.generated,
            drafted_tokens=self.stepper.pace.drafted,
            accepted_tokens=self.stepper.pace.accepted,
            steps=self.stepper.steps,
            owners={
                owner: (shares.rows[owner], samples - shares.rows[owner]) for owner, samples in shares.samples.items()
            },
        )

    # --- a step ------------------------------------------------------------------------------------------------------

    def step(self) -> list[Update]:
        """One pass of the network for what is running, and what it brought."""
        self.advance()
        return self.updates()

    def advance(self) -> None:
        """A step whose news wait for `updates`."""
        for sequence in self.stepper.step():
            if sequence.finish_reason is not None:
                self._end(sequence)
            elif sequence.request.stream:
                self._tell(sequence)

    def updates(self) -> list[Update]:
        """What there is to say: what steps have brought, and the ends of cancelled requests."""
        notices, self._notices = self._notices, []
        return notices

    def _end(self, sequence: Sequence) -> None:
        """Say that it has ended, and free what it holds."""
        if sequence.finish_reason == "error":
            self._cleanse(sequence)
        self._tell(sequence)
        self._forget(sequence)
        self.scheduler.remove(sequence)

    def _forget(self, sequence: Sequence) -> None:
        if sequence.course is not None:
            sequence.course.close()
        siblings = self._requests[sequence.id]
        siblings.remove(sequence)
        if not siblings:
            del self._requests[sequence.id]

    def _cleanse(self, sequence: Sequence) -> None:
        """Numbers that are not finite would spread to whoever gets the block next, for zero times them is not zero."""
        pool = self.scheduler.pool
        own = [block for block in sequence.blocks if pool.holders(block) == 1]
        pool.forget(own)
        self.stepper.memory.clear_blocks(own)

    def _tell(self, sequence: Sequence) -> None:
        """Leave word of what is new of a sample; once, wherever a failure may strike."""
        told, generated = sequence.reported, sequence.generated
        scores = sequence.scores if not told and not sequence.wants_scores else None
        update = Update(
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
            refused=sequence.refused,
            prompt_logprobs=None if scores is None else scores.logprobs(),
            prompt_top_logprobs=None if scores is None else scores.top_logprobs(),
        )
        self._notices.append(update)
        sequence.reported, sequence.closed = generated, sequence.finish_reason is not None

    # --- after a step that failed ------------------------------------------------------------------------------------

    def under_way(self) -> list[Sequence]:
        """All samples that have not ended."""
        return [sequence for samples in self._requests.values() for sequence in samples]

    def samples(self, id: int) -> list[Sequence]:
        """Those of a request that have not ended."""
        return self._requests.get(id, [])[:]

    def involved(self) -> tuple[Sequence | None, list[Sequence]]:
        """The sample that the failed step was about when it failed, where that is known; all that were in it."""
        subject = self.scheduler.subject
        return subject, [s for s in self.under_way() if s.row >= 0 or s is subject]

    def take_part(self, only: Collection[Sequence] | None) -> None:
        """Let these samples alone go on, while all others stand aside; None: let all."""
        self.stepper.disturb()
        self.scheduler.take_part(only)

    def restore(self) -> None:
        """Put every sample back into the queue with its last whole token, whatever a step or another call has left.

        What was said stays said, and the prefix cache stays. They are read anew and go on to the same tokens, for draws
        depend on seed, sample and place alone.
        """
        everyone = self.under_way()
        self.stepper.disturb()
        spoiled = {block for sequence in everyone if sequence.error is not None for block in sequence.blocks}
        self.stepper.memory.clear_blocks(self.scheduler.clear(spoiled))
        for sequence in everyone:
            if not sequence.closed and sequence.error is None:
                self._rewind(sequence)
            if sequence.closed:
                self._forget(sequence)
            elif sequence.finish_reason is not None:
                self._tell(sequence)
                self._forget(sequence)
            else:
                self.scheduler.add(sequence)

    def _rewind(self, sequence: Sequence) -> None:
        for tries_left in reversed(range(_REWINDS)):
            try:
                self._admission.rewind(sequence)
                return
            except BaseException as error:
                if not is_fault(error):
                    raise
                if not tries_left:
                    sequence.break_off(f"the answer so far cannot be followed any more: {error}")

    def fail(self, sequence: Sequence, error: str) -> None:
        """End one sample with an error."""
        sequence.break_off(error)
        self._end(sequence)
