"""What is asked of the engine and what it gives back. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Literal

from ziphius.engine.settings import SamplingSettings
from ziphius.engine.tops import Tops

FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt (token ids) and how to continue it.

    `thinking` says that the prompt leaves a thinking block open, so that the answer begins after `</think>`; None, that
    the model may open one itself with its very first token; False, that there is none.
    `samples` continuations are drawn, which share the prompt's memory. A higher `priority` goes first. Without
    `stream`, a sample comes back in one piece when it ends. Where several `owner`s want more than there is, each gets
    an equal share. With `prompt_logprobs` the prompt's own tokens are scored too: so many likeliest alternatives come
    with each.
    """

    prompt: Sequence[int]
    settings: SamplingSettings = field(default_factory=SamplingSettings)
    priority: int = 0
    thinking: bool | None = None
    samples: int = 1
    stream: bool = True
    owner: str = ""
    prompt_logprobs: int | None = None


@dataclass(slots=True)
class Update:
    """What a step added to one sample of a request.

    `token_ids` are new; where an end or stop token ended the answer, it is the last. Where a stop string did,
    `stop_string` names it and `token_ids` run up to the token that completed it: the text is to be cut before it.
    `logprobs` holds each token's log-probability in the network's own distribution at the sampling temperature (at 1
    where that is 0), before penalties, biases, constraints and cuts; `top_logprobs`, where asked for, the likeliest
    tokens of the same distribution, best first. `prompt_logprobs` and `prompt_top_logprobs`, where asked for, say the
    same of the prompt's tokens, in the network's own distribution at temperature 1, with the sample's first update; the
    first token has neither. `cached_tokens` of the prompt were found in the prefix cache.
    `drafted` and `accepted_drafts` count the sample's speculation so far. `error` says what went wrong with finish
    reason `error`, and `refused` that it was the request's own constraint.
    """

    id: int
    sample: int
    token_ids: list[int]
    logprobs: list[float]
    top_logprobs: list[Tops] | None = None
    finish_reason: FinishReason | None = None
    stop_string: str | None = None
    cached_tokens: int = 0
    accepted_drafts: int = 0
    drafted: int = 0
    error: str | None = None
    refused: bool = False
    prompt_logprobs: list[float | None] | None = None
    prompt_top_logprobs: list[Tops] | None = None


@dataclass(frozen=True, slots=True)
class EngineStats:
    """The engine's state and its counts since it was made.

    Blocks are `used` by running samples, `cached` for later ones, or free. `hit_tokens` of the prompts were found in
    the prefix cache, `miss_tokens` were not. Of `drafted_tokens`, `accepted_tokens` were right. `owners` has how many
    samples of each owner run, and how many wait.
    """

    blocks_total: int
    blocks_used: int
    blocks_cached: int
    running: int
    waiting: int
    preemptions: int
    hit_tokens: int
    miss_tokens: int
    generated_tokens: int
    drafted_tokens: int
    accepted_tokens: int
    steps: int
    owners: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def total(cls, several: Sequence[EngineStats]) -> EngineStats:
        """Of several engines together."""
        owners = {owner: (0, 0) for stats in several for owner in stats.owners}
        for stats in several:
            for owner, (running, waiting) in stats.owners.items():
                owners[owner] = (owners[owner][0] + running, owners[owner][1] + waiting)
        names = [field.name for field in fields(cls) if field.name != "owners"]
        return cls(**{name: sum(getattr(stats, name) for stats in several) for name in names}, owners=owners)

    @property
    def acceptance(self) -> float | None:
        """Share of the drafted tokens that were right; None before the first draft."""
        return self.accepted_tokens / self.drafted_tokens if self.drafted_tokens else None
