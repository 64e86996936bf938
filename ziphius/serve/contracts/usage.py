"""What a request used: tokens by kind, and the price under usage's one extra key."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from ziphius.serve.contracts.price import Rate


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class PromptDetails(Frozen):
    cached_tokens: int


class CompletionDetails(Frozen):
    reasoning_tokens: int


class ListCost(Frozen):
    model: str
    dollars: float


class Cost(Frozen):
    """`dollars` = the request's share of the engine's time (`engine_seconds`) × `dollars_per_hour`.

    `list_price`: what the same tokens cost at a published price. Of `drafted_tokens` the model accepted some.
    """

    dollars: float
    dollars_per_hour: float
    engine_seconds: float
    list_price: ListCost | None
    drafted_tokens: int
    accepted_tokens: int


class Usage(Frozen):
    """Source: the usage object of OpenAI's API with DeepSeek's `prompt_cache_hit_tokens` and `_miss_tokens`."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails
    prompt_cache_hit_tokens: int
    prompt_cache_miss_tokens: int
    ziphius: Cost


@dataclass
class Tally:
    """Counts of a request while it runs."""

    prompt: int
    cached: int = 0
    completion: int = 0
    reasoning: int = 0
    drafted: int = 0
    accepted: int = 0

    def usage(self, rate: Rate, seconds: float) -> Usage:
        """The bill: `seconds` is the share of the engine's time."""
        listed = rate.list_dollars(self.cached, self.prompt - self.cached, self.completion)
        return Usage(
            prompt_tokens=self.prompt,
            completion_tokens=self.completion,
            total_tokens=self.prompt + self.completion,
            prompt_tokens_details=PromptDetails(cached_tokens=self.cached),
            completion_tokens_details=CompletionDetails(reasoning_tokens=self.reasoning),
            prompt_cache_hit_tokens=self.cached,
            prompt_cache_miss_tokens=self.prompt - self.cached,
            ziphius=Cost(
                dollars=rate.dollars(seconds),
                dollars_per_hour=rate.dollars_per_hour,
                engine_seconds=seconds,
                list_price=ListCost(model=rate.listed.model, dollars=listed)
                if rate.listed is not None and listed is not None
                else None,
                drafted_tokens=self.drafted,
                accepted_tokens=self.accepted,
            ),
        )
