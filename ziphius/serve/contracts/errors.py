"""What a request that cannot be answered is told: `{"error": {message, type, param, code}}` and a status.

Source: the error object of OpenAI's API reference; the statuses are DeepSeek's (422 for a parameter that is wrong).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

_LONGEST, _LONGEST_PARAM = 1000, 200  # characters: a message may quote what a client sent, which may be anything
_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
}
# Names of union members that pydantic puts into the path of an error and no client has written.
_ROLES = {"system", "developer", "user", "assistant", "tool", "function"}
_FORMS = {"text", "json_object", "json_schema", "regex", "grammar"}
_BLOCKS = {"text", "thinking", "redacted_thinking", "tool_use", "tool_result"}  # of Anthropic's messages


class ApiError(Exception):
    """A refusal with its HTTP status, the parameter it is about, and how long to wait before asking again (seconds).

    `id` tells it from others in the log.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, wait: int | None = None
    ) -> None:
        message = readable(message, _LONGEST)
        super().__init__(message)
        self.status, self.message, self.code, self.wait = status, message, code, wait
        self.param = param and readable(param, _LONGEST_PARAM)

    @property
    def body(self) -> dict[str, Any]:
        kind = _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        headers = {} if self.wait is None else {"Retry-After": str(self.wait)}
        return headers | {"WWW-Authenticate": "Bearer"} if self.status == 401 else headers


def readable(text: str, most: int) -> str:
    """A text that may quote a client: of a long one beginning and end, and no character that a terminal obeys."""
    if len(text) > most:
        text = f"{text[: most // 2]} … {text[-most // 4 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text)


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """What every status but 200 answers."""

    error: ErrorDetail


def of_validation(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """Pydantic's findings as one refusal: the first, with the parameter's name."""
    first = errors[0]
    where = [part for part in first["loc"] if part != "body"]
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {first.get('ctx', {}).get('error', first['msg'])}")
    if not where and first["type"] != "value_error":
        return ApiError(400, "the body must be a JSON object, sent as Content-Type: application/json")
    param = ".".join(str(part) for part in _written(where)) or None
    if first["type"] == "extra_forbidden":
        return ApiError(
            422,
            f"{param} is not a field of this request, or not one that is offered here; leave it out",
            param=param,
            code="unknown_field",
        )
    message = str(first["msg"]).removeprefix("Value error, ")
    return ApiError(422, f"{param}: {message}" if param else message, param=param, code=str(first["type"]))


def _written(where: Sequence[Any]) -> list[Any]:
    """A path without the tags of unions: `messages.0.user.content` was written `messages.0.content`."""
    tags = {
        place
        for place, part in enumerate(where)
        if (place == 2 and where[0] == "messages" and part in _ROLES)
        or (place > 3 and where[0] == "messages" and part in _BLOCKS and isinstance(where[place - 1], int))
        or (where[:place] == ["response_format"] and part in _FORMS)
    }
    return [
        part
        for place, part in enumerate(where)
        if place not in tags and not (isinstance(part, str) and ("[" in part or (part.istitle() and "_" not in part)))
    ]
