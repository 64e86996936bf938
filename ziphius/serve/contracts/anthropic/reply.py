"""What `/v1/messages` answers: messages, counts, errors. Imports no torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from ziphius.serve.contracts.anthropic.request import NO_THREADS
from ziphius.serve.contracts.errors import ApiError
from ziphius.serve.contracts.usage import Cost, Tally, Usage

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"]
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


class MadeThinking(BaseModel):
    type: Literal["thinking"] = "thinking"
    thinking: str
    signature: str


class MadeText(BaseModel):
    type: Literal["text"] = "text"
    text: str


class MadeToolUse(BaseModel):
    type: Literal["tool_use"] = "tool_use"
    id: str
    name: str
    input: dict[str, Any]


class OutputDetails(BaseModel):
    thinking_tokens: int


class MessageUsage(BaseModel):
    """`input_tokens` were read by the network, `cache_read_input_tokens` found in its cache. `ziphius`: the price,
    once the message has ended."""

    input_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: OutputDetails
    service_tier: Literal["standard"] = "standard"
    ziphius: Cost | None = None

    @classmethod
    def at_the_start(cls, tally: Tally) -> MessageUsage:
        """Of a message of which nothing is written: what the cache holds is not known yet."""
        details = OutputDetails(thinking_tokens=0)
        return cls(input_tokens=tally.prompt, cache_read_input_tokens=0, output_tokens=0, output_tokens_details=details)

    @classmethod
    def of(cls, used: Usage) -> MessageUsage:
        return cls(
            input_tokens=used.prompt_cache_miss_tokens,
            cache_read_input_tokens=used.prompt_cache_hit_tokens,
            output_tokens=used.completion_tokens,
            output_tokens_details=OutputDetails(thinking_tokens=used.completion_tokens_details.reasoning_tokens),
            ziphius=used.ziphius,
        )


class MessageReply(BaseModel):
    """The answer to `POST /v1/messages`. `stop_reason` is null only at the start of a stream."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[MadeThinking | MadeText | MadeToolUse]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: MessageUsage


class TokenCount(BaseModel):
    """The answer to `POST /v1/messages/count_tokens`."""

    input_tokens: int


class MessageErrorCause(BaseModel):
    """A name for the cause that does not change; of a feature that is not offered, which."""

    error_code: str
    unsupported: list[str] | None = None


class MessageErrorDetail(BaseModel):
    type: str
    message: str
    details: MessageErrorCause | None = None


class MessageError(BaseModel):
    """What every status but 200 answers; `request_id` stands in the log and in the header `request-id`, too."""

    type: Literal["error"] = "error"
    error: MessageErrorDetail
    request_id: str


def as_message_error(error: ApiError, id: str) -> tuple[int, dict[str, Any]]:
    """The status and the body of the refusal of request `id`, as this API says it: 400 where others have 422."""
    status = 400 if error.status == 422 else error.status
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    too_long = "prompt is too long: " if error.code == "context_length_exceeded" else ""  # what clients look for
    cause = None
    if error.code is not None:
        cause = MessageErrorCause(error_code=error.code, unsupported=["thread"] if error.code == NO_THREADS else None)
    detail = MessageErrorDetail(type=kind, message=too_long + error.message, details=cause)
    return status, MessageError(error=detail, request_id=id).model_dump(exclude_none=True)
