"""A request as the engine knows it: settings with the model's defaults, limits, budgets. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from ziphius.engine.request import Request
from ziphius.engine.settings import Constraint, SamplingSettings
from ziphius.serve.contracts.chat import ChatRequest
from ziphius.serve.contracts.completions import CompletionRequest
from ziphius.serve.contracts.errors import ApiError, of_validation
from ziphius.serve.contracts.formats import GrammarFormat, JsonSchemaFormat, RegexFormat
from ziphius.serve.contracts.sampling import Sampling
from ziphius.serve.dialogue.prompt import Prompt

# The share of an answer's tokens that thinking may take, so that the answer always has room.
EFFORT = {
    "minimal": 1 / 8, "low": 1 / 4, "medium": 1 / 2, "high": 3 / 4, "xhigh": 7 / 8, "max": 15 / 16, "ultra": 15 / 16,
}  # fmt: skip
_SHORT = 16  # tokens of a completion that does not say, as OpenAI has it
_LEAST_TOP_P = 1e-6  # 0, which takes the likeliest token
_SAME_NAME = (
    "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty",
    "logit_bias", "seed", "min_tokens", "ignore_eos",
)  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """What the model allows and does unless told otherwise.

    `context` is its longest sequence in tokens, `max_tokens` an answer's length where none is given, `defaults` the
    sampling of its generation_config.json.
    """

    context: int
    vocab_size: int
    max_tokens: int
    defaults: dict[str, Any]


def chat_request(
    asked: ChatRequest, prompt: Prompt, limits: Limits, ends: Sequence[int], tools: Mapping[str, Any] | None = None
) -> Request:
    """`ends`: tokens that end a turn beside the model's end token; `tools`: what `tool_settings` says.

    Raises ApiError for what does not fit.
    """
    tools = tools or {}
    room = _room(len(prompt.ids), asked.limit, limits, "messages")
    settings = _settings(asked, limits, room)
    ends = () if asked.ignore_eos else ends
    settings["stop_token_ids"] = (*settings["stop_token_ids"], *ends, *tools.get("stop_token_ids", ()))
    settings["logit_bias"] = settings.get("logit_bias", {}) | tools.get("logit_bias", {})
    settings["constraint"] = tools.get("constraint", settings["constraint"])
    settings["logprobs"] = (asked.top_logprobs or 0) if asked.logprobs else None
    settings["thinking_budget"] = None if prompt.thinking is False else _budget(asked, room)
    return Request(
        prompt.ids,
        _sampling(settings),
        thinking=prompt.thinking,
        samples=asked.n or 1,
        stream=bool(asked.stream),
    )


def completion_request(asked: CompletionRequest, ids: list[int], limits: Limits) -> Request:
    """One of the prompts of a completion."""
    room = _room(len(ids), asked.max_tokens, limits, "prompt")
    settings = _settings(asked, limits, room if asked.max_tokens is not None else min(room, _SHORT))
    settings["logprobs"] = asked.logprobs
    return Request(
        ids,
        _sampling(settings),
        thinking=False,
        samples=asked.n or 1,
        stream=bool(asked.stream),
        prompt_logprobs=asked.logprobs if asked.echo else None,
    )


def _room(prompt_tokens: int, wanted: int | None, limits: Limits, param: str) -> int:
    """How many tokens the answer may have: what is wanted, or as many as the context leaves."""
    left = limits.context - prompt_tokens
    if left < (1 if wanted is None else min(1, wanted)):
        raise ApiError(
            400,
            f"the prompt has {prompt_tokens} tokens; the model reads and writes {limits.context} at most: "
            f"shorten {param}",
            param=param,
            code="context_length_exceeded",
        )
    return min(left, wanted if wanted is not None else limits.max_tokens)


def _settings(asked: Sampling, limits: Limits, room: int) -> dict[str, Any]:
    given = {name: value for name in _SAME_NAME if (value := getattr(asked, name)) is not None}
    for name, ids in (("logit_bias", asked.logit_bias), ("stop_token_ids", asked.stop_token_ids)):
        for token in ids or ():
            if not 0 <= token < limits.vocab_size:
                raise ApiError(
                    422, f"{name}: there is no token {token}; ids run from 0 to {limits.vocab_size - 1}", param=name
                )
    if "top_k" in given:
        given["top_k"] = min(given["top_k"], limits.vocab_size)  # more is the same as all, and may be any number
    if "top_p" in given:
        given["top_p"] = max(given["top_p"], _LEAST_TOP_P)
    if given.get("min_tokens", 0) > room:
        raise ApiError(
            422,
            f"min_tokens: {given['min_tokens']} exceeds the {room} tokens that the answer may have",
            param="min_tokens",
        )
    return (
        limits.defaults
        | given
        | {
            "max_new_tokens": room,
            "stop": tuple(asked.stops),
            "stop_token_ids": tuple(asked.stop_token_ids or ()),
            "constraint": _constraint(asked),
        }
    )


def _sampling(settings: dict[str, Any]) -> SamplingSettings:
    """Raises ApiError for what the engine does not do, which a contract may know less closely."""
    try:
        return SamplingSettings(**settings)
    except ValidationError as error:
        raise of_validation(error.errors(include_url=False, include_input=False)) from None


def _budget(asked: ChatRequest, room: int) -> int | None:
    """How many tokens the thinking may have of the answer's `room`; None where there is no room to divide."""
    if room < 2:
        return None
    budget = int(room * EFFORT[asked.reasoning_effort or "high"])
    if asked.thinking is not None and asked.thinking.budget_tokens is not None:
        budget = asked.thinking.budget_tokens
        if asked.limit is not None and budget + 2 > asked.limit:
            raise ApiError(
                422,
                f"thinking.budget_tokens: {budget} leaves no room for an answer within {asked.limit} tokens; "
                "lower it, or raise max_tokens",
                param="thinking.budget_tokens",
            )
    return min(budget, room - 2)


def _constraint(asked: Sampling) -> Constraint | None:
    form = asked.response_format
    if isinstance(form, RegexFormat):
        return Constraint(kind="regex", text=form.pattern)
    if isinstance(form, GrammarFormat):
        return Constraint(kind="grammar", text=form.grammar)
    if isinstance(form, JsonSchemaFormat):
        return Constraint(kind="json_schema", text=json.dumps(form.json_schema.schema_))
    if form is not None and form.type == "json_object":
        return Constraint(kind="json")
    return None
