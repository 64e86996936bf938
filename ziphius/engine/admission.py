"""From a request to its samples, or a clear refusal."""

from __future__ import annotations

import secrets
import threading
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from ziphius.engine.course import Course
from ziphius.engine.grammar.matcher import Matcher
from ziphius.engine.grammar.store import Grammars
from ziphius.engine.random import sample_key
from ziphius.engine.request import Request
from ziphius.engine.scores import PromptScores
from ziphius.engine.sequence import Sequence
from ziphius.engine.settings import MOST_LOGPROBS, EngineSettings, SamplingSettings
from ziphius.engine.shaping import is_shaped
from ziphius.model.config import ModelConfig
from ziphius.text.detokenise import Detokeniser, StopStrings
from ziphius.text.tokenizer import Tokenizer

_MOST_SAMPLES = 2**16


class Admission:
    """Knows the model's limits; `capacity` is how many tokens the cache can hold of one sequence."""

    def __init__(
        self, config: ModelConfig, tokenizer: Tokenizer | None, capacity: int, engine: EngineSettings | None = None
    ) -> None:
        self.config, self.tokenizer, self.capacity = config, tokenizer, capacity
        named = config.eos_token_id
        own = named if isinstance(named, list) else [] if named is None else [named]
        self.eos_ids = own if tokenizer is None else tokenizer.eos_ids
        self._grammars = None
        if tokenizer is not None:
            self._grammars = Grammars(tokenizer, config.vocab_size, engine or EngineSettings())

    def sequences(self, id: int, request: Request) -> list[Sequence]:
        """The request's samples. Raises ValueError for what cannot be served."""
        self._check(request)
        settings = request.settings
        seed = secrets.randbits(64) if settings.seed is None else settings.seed
        stops = {*settings.stop_token_ids, *(() if settings.ignore_eos else self.eos_ids)}
        prompt = list(map(int, request.prompt))
        scores = None
        if request.prompt_logprobs is not None:
            scores = PromptScores(len(prompt), min(request.prompt_logprobs, self.config.vocab_size))
        matchers: list[Matcher | None] = [None] * request.samples
        if self._grammars is not None and settings.constraint is not None:
            matchers = [*self._grammars.matchers(settings.constraint, request.samples)]
        return [
            Sequence(
                id=id,
                sample=sample,
                request=request,
                tokens=prompt.copy(),
                prompt_length=len(prompt),
                limit=len(prompt) + settings.max_new_tokens,
                stops=frozenset(stops),
                key=sample_key(seed, sample),
                shaped=_is_bound(request),
                plain=not (_is_bound(request) or _needs_text(settings) or settings.logprobs is not None)
                and settings.max_new_tokens > 0,
                scores=scores,
                **self._followers(request, matcher),
            )
            for sample, matcher in enumerate(matchers)
        ]

    def rewind(self, sequence: Sequence) -> None:
        """Make one whole again whose step failed: its last whole token is its last."""
        matcher = None if sequence.course is None else sequence.course.matcher
        if matcher is not None:
            matcher.restart()
        sequence.rewind(**self._followers(sequence.request, matcher))

    def prepared(self, request: Request, abandoned: threading.Event) -> AbstractContextManager[object]:
        """Within it, `sequences` need not read the request's constraint, which may take seconds; any thread may enter.

        Raises ValueError for one that cannot be used, Abandoned once that is set.
        """
        constraint = request.settings.constraint
        if self._grammars is None or constraint is None:
            return nullcontext()
        return self._grammars.held(constraint, request.owner, abandoned)

    def _check(self, request: Request) -> None:
        settings, room, vocabulary = request.settings, self.config.max_position_embeddings, self.config.vocab_size
        length, limit = len(request.prompt), len(request.prompt) + settings.max_new_tokens
        if not 1 <= request.samples <= _MOST_SAMPLES:
            raise ValueError(f"samples is {request.samples}; it must be 1 to {_MOST_SAMPLES}")
        if request.prompt_logprobs is not None and not 0 <= request.prompt_logprobs <= MOST_LOGPROBS:
            raise ValueError(f"prompt_logprobs is {request.prompt_logprobs}; it must be 0 to {MOST_LOGPROBS}")
        if not length or limit > room:
            raise ValueError(
                f"the prompt has {length} tokens and may grow by {settings.max_new_tokens}; "
                f"it must hold at least one and the sum at most {room} (max_position_embeddings)"
            )
        if limit > self.capacity:
            raise ValueError(
                f"the prompt has {length} tokens and may grow by {settings.max_new_tokens}, but the cache holds "
                f"{self.capacity}; lower max_new_tokens or give the engine more memory"
            )
        for what, ids in (
            ("the prompt", request.prompt),
            ("logit_bias", settings.logit_bias),
            ("stop_token_ids", settings.stop_token_ids),
        ):
            if ids and not 0 <= min(ids) <= max(ids) < vocabulary:
                raise ValueError(f"{what} holds a token id outside 0…{vocabulary - 1}, the model's vocabulary")
        if self.tokenizer is None and _needs_text(settings):
            raise ValueError("stop strings, a thinking budget and a constraint need a tokenizer; give the engine one")

    def _followers(self, request: Request, matcher: Matcher | None) -> dict[str, Any]:
        """What follows the tokens of a sample from its first one on."""
        settings, tokenizer = request.settings, self.tokenizer
        return {
            "course": self._course(request, matcher),
            "watch": StopStrings(settings.stop) if settings.stop else None,
            "detokeniser": Detokeniser(tokenizer) if settings.stop and tokenizer is not None else None,
        }

    def _course(self, request: Request, matcher: Matcher | None) -> Course | None:
        settings, tokenizer = request.settings, self.tokenizer
        if tokenizer is None or not _needs_text(settings):
            return None
        return Course(tokenizer.thinking, request.thinking, settings.thinking_budget, matcher)


def _needs_text(settings: SamplingSettings) -> bool:
    return bool(settings.stop) or settings.thinking_budget is not None or settings.constraint is not None


def _is_bound(request: Request) -> bool:
    settings = request.settings
    return is_shaped(settings) or settings.thinking_budget is not None or settings.constraint is not None
