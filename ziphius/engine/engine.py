"""The engine: requests in, tokens out, one step at a time."""

from __future__ import annotations

from ziphius.engine.admission import Admission
from ziphius.engine.blocks import BlockPool
from ziphius.engine.fingerprint import fingerprint
from ziphius.engine.request import EngineStats, FinishReason, Request, Update
from ziphius.engine.scheduler import Scheduler
from ziphius.engine.sequence import Sequence
from ziphius.engine.settings import EngineSettings
from ziphius.engine.sizes import pool_blocks
from ziphius.engine.stepper import Stepper
from ziphius.model.transformer import Transformer
from ziphius.ops.backend import compute_dtype
from ziphius.text.tokenizer import Tokenizer


class Engine:
    """Samples from a model for many requests at once. Not thread-safe: one thread calls it.

    `tokenizer` may be None where no request has stop strings, a thinking budget or a constraint. The model's weights
    are used in place; who changes them calls `weights_changed`. The cache takes the dtype of the caller's autocast, so
    all steps run in that one.
    """

    def __init__(self, model: Transformer, tokenizer: Tokenizer | None, settings: EngineSettings | None = None) -> None:
        """Raises ValueError for settings that do not fit the model."""
        self.model, self.settings = model, settings or EngineSettings()
        s = self.settings
        blocks = pool_blocks(s, model.config, compute_dtype(model.model.embed_tokens.weight).itemsize)
        self.scheduler = Scheduler(BlockPool(blocks, s.block_size, s.prefix_cache), s.max_rows, s.max_batch_tokens)
        self.stepper = Stepper(model, self.scheduler, s)
        self._admission = Admission(model.config, tokenizer, blocks * s.block_size)
        self._requests: dict[int, list[Sequence]] = {}
        self._notices: list[Update] = []
        self._next_id = 0
        self._fingerprint: str | None = None

    # --- requests ----------------------------------------------------------------------------------------------------

    def prepare(self, request: Request) -> None:
        """What of `add` may take long, for another thread to do before. Raises ValueError for a constraint that cannot
        be read."""
        self._admission.prepare(request.settings)

    def add(self, request: Request) -> int:
        """Queue a request; its id. Raises ValueError for what cannot be served."""
        sequences = self._admission.sequences(self._next_id, request)
        self.stepper.disturb()
        self._requests[self._next_id] = sequences
        for sequence in sequences:
            self.scheduler.add(sequence)
        self._next_id += 1
        return self._next_id - 1

    def cancel(self, id: int) -> None:
        """End a request; its blocks are free at once. The next step's updates say so. Unknown ids are let be."""
        self.stepper.disturb()
        for sequence in self._requests.get(id, [])[:]:
            self._finish(sequence, "cancelled")
            self._notices.append(self._update(sequence))

    @property
    def has_work(self) -> bool:
        """Whether `step` has something to do or to say."""
        return bool(self._requests or self._notices)

    def weights_changed(self) -> None:
        """Forget what was computed with the old weights; running samples are read anew with the new ones."""
        self.stepper.disturb()
        for sequence in self.scheduler.running[:]:
            self.scheduler.preempt(sequence)
        for sequence in (sequence for samples in self._requests.values() for sequence in samples):
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
            generated_tokens=self.stepper.generated,
            drafted_tokens=self.stepper.pace.drafted,
            accepted_tokens=self.stepper.pace.accepted,
            steps=self.stepper.steps,
        )

    # --- a step ------------------------------------------------------------------------------------------------------

    def updates(self) -> list[Update]:
        """What there is to say without a step: the ends of cancelled requests."""
        notices, self._notices = self._notices, []
        return notices

    def step(self) -> list[Update]:
        """One pass of the network for what is running, and what it brought."""
        updates = self.updates()
        for sequence in self.stepper.step():
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
        self.stepper.memory.clear_blocks(own)

    def _update(self, sequence: Sequence) -> Update:
        """What is new of a sample."""
        told, sequence.reported = sequence.reported, sequence.generated
        scores = sequence.scores if not told and not sequence.wants_scores else None
        return Update(
            id=sequence.id,
            sample=sequence.sample,
            token_ids=sequence.tokens[sequence.prompt_length + told :],
            logprobs=sequence.logprobs[told:],
            top_logprobs=None if sequence.request.settings.logprobs is None else sequence.top_logprobs[told:],
            prompt_logprobs=None if scores is None else scores.logprobs(),
            prompt_top_logprobs=None if scores is None else scores.top_logprobs(),
            finish_reason=sequence.finish_reason,
            stop_string=sequence.stop_string,
            cached_tokens=max(sequence.cached_tokens, 0),
            accepted_drafts=sequence.accepted,
            drafted=sequence.drafted,
            error=sequence.error,
        )
