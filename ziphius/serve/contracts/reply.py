"""What comes back: the objects of OpenAI's API with DeepSeek's additions. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from ziphius.serve.contracts.usage import Usage


def written(logprob: float) -> float:
    """A log-probability as JSON can hold it, which knows no infinity; the least is OpenAI's."""
    return max(logprob, -9999.0)


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(BaseModel):
    content: list[TokenLogprob]
    reasoning_content: list[TokenLogprob]
    refusal: None = None


class MadeFunction(BaseModel):
    """`arguments` is JSON in a string."""

    name: str
    arguments: str


class MadeCall(BaseModel):
    id: str
    type: Literal["function"] = "function"
    function: MadeFunction


def _is_none(value: object) -> bool:
    return value is None


class ChatMessage(BaseModel):
    """`function_call` answers a request with `functions`, OpenAI's form of 2023. A model here refuses in its text."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    reasoning_content: str | None
    refusal: None = None
    tool_calls: list[MadeCall] | None = Field(None, exclude_if=_is_none)
    function_call: MadeFunction | None = Field(None, exclude_if=_is_none)


class ChatChoice(BaseModel):
    index: int
    message: ChatMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls", "function_call"]


class ChatCompletion(BaseModel):
    """The answer to `POST /v1/chat/completions`. `system_fingerprint` changes with the weights."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class TextLogprobs(BaseModel):
    """The old form: one entry a token, `text_offset` counting characters. The first token of a prompt has no scores."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(BaseModel):
    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length"]


class TextCompletion(BaseModel):
    """The answer to `POST /v1/completions`."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: Usage


class ModelCard(BaseModel):
    """The model: beyond OpenAI's fields the longest sequence it reads and writes, and questions to begin with."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    context_length: int
    examples: list[str] = []
    type: Literal["model"] = "model"  # from here on the fields of Anthropic's API
    display_name: str
    created_at: str
    max_input_tokens: int


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]
    has_more: Literal[False] = False


class Health(BaseModel):
    status: Literal["ok", "draining", "failed"]
