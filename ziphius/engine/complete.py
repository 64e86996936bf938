"""Whole answers to a list of requests, for those who have nothing to stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ziphius.engine.engine import Engine
from ziphius.engine.request import Request
from ziphius.engine.settings import EngineSettings, SamplingSettings
from ziphius.model.transformer import Transformer
from ziphius.text.tokenizer import Tokenizer


@dataclass
class Completion:
    """Sampled tokens, the stop token included, each with its log-probability at the sampling temperature.

    `finished` is false where the length limit cut the answer off.
    """

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finished: bool = False


def complete(engine: Engine, requests: Sequence[Request]) -> list[list[Completion]]:
    """The samples of each request, in order, from an engine that has nothing else to do.

    Raises ValueError for a request that cannot be served, RuntimeError for a sample that came to grief on the way.
    """
    places: dict[int, int] = {}
    try:
        for place, request in enumerate(requests):
            try:
                places[engine.add(request)] = place
            except ValueError as error:
                raise ValueError(f"prompt {place}: {error}") from error
        return _collect(engine, requests, places)
    finally:  # nothing is left behind, whatever happened
        for id in places:
            engine.cancel(id)
        engine.updates()


def _collect(engine: Engine, requests: Sequence[Request], places: dict[int, int]) -> list[list[Completion]]:
    found = [[Completion() for _ in range(request.samples)] for request in requests]
    while engine.has_work:
        for update in engine.step():
            if update.finish_reason == "error":
                raise RuntimeError(f"prompt {places[update.id]}: {update.error}")
            completion = found[places[update.id]][update.sample]
            completion.tokens += update.token_ids
            completion.logprobs += update.logprobs
            completion.finished = update.finish_reason == "stop"
    return found


def engine_for(
    model: Transformer, tokenizer: Tokenizer | None, requests: Sequence[Request], max_rows: int = 256
) -> Engine:
    """An engine with just the room that these requests can use, and without speculation, whose timing would let the
    rounding of one run differ from that of the next."""
    rows = min(max_rows, max(1, sum(request.samples for request in requests)))
    longest = max((len(r.prompt) + r.settings.max_new_tokens for r in requests), default=1)
    size = EngineSettings().block_size
    settings = EngineSettings(blocks=rows * -(-longest // size), max_rows=rows, speculation="off")
    return Engine(model, tokenizer, settings)


def try_once(engine: Engine, token: int) -> None:
    """One short request, so that the first to ask need not wait for what is built or loaded on first use."""
    complete(engine, [Request([token], SamplingSettings(max_new_tokens=2, ignore_eos=True))])
