"""One sample on its way: its tokens, its blocks, and how far the network has read. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ziphius.engine.blocks import ROOT, BlockPool
from ziphius.engine.course import Course
from ziphius.engine.request import FinishReason, Request
from ziphius.engine.scores import PromptScores
from ziphius.engine.tops import Tops
from ziphius.text.detokenise import Detokeniser, StopStrings


@dataclass(slots=True, eq=False)
class Sequence:
    """Prompt and answer so far. The cache holds the entries of the first `computed` of `tokens`.

    `row` is its line in the tables while it runs, −1 while it waits. `drafts` are guesses at what follows `tokens`.
    """

    id: int
    sample: int
    request: Request
    tokens: list[int]
    prompt_length: int
    limit: int  # tokens at which it ends
    stops: frozenset[int]
    key: int  # of its random numbers
    shaped: bool = False  # whether more than temperature and cuts bears on its draws
    plain: bool = False  # whether its tokens need no looking at, but for its end
    scores: PromptScores | None = None  # of the prompt's tokens, where they are asked for
    course: Course | None = None
    watch: StopStrings | None = None
    detokeniser: Detokeniser | None = None
    late: bool = False  # whether its constraint has not said yet what may come; was_late: whether that ever was so
    was_late: bool = False
    answered: bool = False  # whether the watched answer has begun
    logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[Tops] = field(default_factory=list)
    row: int = -1
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    registered: int = 0  # of `blocks`, those that the pool knows or need not know
    cached_tokens: int = -1  # before it is first admitted
    drafts: list[int] = field(default_factory=list)
    drafting: int = 0  # so many prediction modules have read all that the network has
    drafted: int = 0
    accepted: int = 0
    reported: int = 0  # generated tokens that an update has told of
    closed: bool = False  # whether an update has told its end
    finish_reason: FinishReason | None = None
    stop_string: str | None = None
    error: str | None = None
    refused: bool = False  # whether its own constraint is to blame for the error

    @property
    def rank(self) -> tuple[int, int, int]:
        """Its place in the order of service: priority first, then arrival."""
        return -self.request.priority, self.id, self.sample

    @property
    def owner(self) -> str:
        return self.request.owner

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt_length

    @property
    def decodes(self) -> bool:
        """Whether only its newest token has not been read yet."""
        return self.computed == len(self.tokens) - 1

    @property
    def wants_scores(self) -> bool:
        """Whether some of the prompt's tokens are still to be scored."""
        return self.scores is not None and not self.scores.complete

    def break_off(self, error: str) -> None:
        self.error, self.finish_reason = error, "error"

    def stands(self, logprob: float) -> bool:
        """Whether a token was drawn from numbers that are finite; the sample is broken off where it was not."""
        if not logprob > -math.inf:
            self.break_off("the network gave no finite numbers")
        return self.error is None

    def append(self, token: int, logprob: float) -> bool:
        """Take on a token; whether the answer goes on. One whose form may be complete does, for a step that sees."""
        self.tokens.append(token)
        self.logprobs.append(logprob)
        if token in self.stops or (self.course is not None and self._ends_in_text(self.course, token)):
            self.finish_reason = "stop"
        elif self.course is None or self.course.settled:
            self.end_at_limit()
        return self.finish_reason is None

    def end_at_limit(self) -> None:
        if len(self.tokens) >= self.limit:
            self.finish_reason = "length"

    def _ends_in_text(self, course: Course, token: int) -> bool:
        """Whether a stop string is complete, or the constrained form."""
        thinking = course.thinking
        course.advance(token)
        if thinking or course.thinking:
            return False
        if self.watch is not None and self.detokeniser is not None:
            text = self.detokeniser.push([token])
            if course.thought and not self.answered:
                text = text.lstrip()
            self.answered = self.answered or bool(text)
            self.watch.push(text)
            if self.watch.found is not None and self.generated < self.request.settings.min_tokens:
                self.watch.look_on()
            self.stop_string = self.watch.found
        return self.stop_string is not None or course.finished

    def rewind(self, course: Course | None, watch: StopStrings | None, detokeniser: Detokeniser | None) -> None:
        """Back to its last whole token, as one that waits and of which nothing was read. What follows its tokens is
        given anew and led through them."""
        whole = min(self.generated, len(self.logprobs))
        if self.request.settings.logprobs is not None:
            whole = min(whole, len(self.top_logprobs))
        tokens, logprobs = self.tokens[: self.prompt_length + whole], self.logprobs[:whole]
        del self.top_logprobs[whole:]
        self.row, self.computed, self.registered, self.drafting = -1, 0, 0, 0
        self.blocks, self.digests, self.drafts = [], [], []
        self.course, self.watch, self.detokeniser, self.answered = course, watch, detokeniser, False
        self.finish_reason = self.stop_string = None
        self.late = False
        try:
            self.tokens, self.logprobs = tokens[: self.prompt_length], []
            for token, logprob in zip(tokens[self.prompt_length :], logprobs, strict=True):
                self.append(token, logprob)
        finally:  # nothing that was said is lost, should one that follows fail
            self.tokens, self.logprobs = tokens, logprobs

    # --- blocks ------------------------------------------------------------------------------------------------------

    def full_digests(self, pool: BlockPool) -> list[bytes]:
        """Digests of all full blocks of `tokens`."""
        size = pool.block_size
        for place in range(len(self.digests), len(self.tokens) // size):
            before = self.digests[-1] if self.digests else ROOT
            self.digests.append(pool.digest(before, self.tokens[place * size : (place + 1) * size]))
        return self.digests

    def register(self, pool: BlockPool) -> None:
        """Let the pool know the blocks that `computed` has filled."""
        size = pool.block_size
        digests = self.full_digests(pool)
        for place in range(self.registered, self.computed // size):
            pool.register(self.blocks[place], digests[place], self.tokens[place * size : (place + 1) * size])
            if self.scores is not None and (kept := self.scores.kept(place * size, (place + 1) * size)) is not None:
                pool.keep_scores(digests[place], kept)
        self.registered = max(self.registered, self.computed // size)
