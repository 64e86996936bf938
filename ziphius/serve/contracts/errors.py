"""What a request that cannot be answered is told: `{"error": {message, type, param, code}}` and a status.

Source: the error object of OpenAI's API reference; the statuses are DeepSeek's (422 for a parameter that is wrong).
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
}
# Names of union members that pydantic puts into the path of an error and no client has written.
_TAGS = {
    "system", "developer", "user", "assistant", "tool", "text", "json_object", "json_schema", "regex", "grammar",
    "thinking", "redacted_thinking", "tool_use", "tool_result",
}  # fmt: skip


class ApiError(Exception):
    """A refusal with its HTTP status, the parameter it is about, and how long to wait before asking again (seconds).

    `id` tells it from others in the log.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, wait: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.wait = status, message, param, code, wait
        self.id = f"req_{secrets.token_hex(12)}"

    @property
    def body(self) -> dict[str, Any]:
        kind = _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        headers = {} if self.wait is None else {"Retry-After": str(self.wait)}
        return headers | {"WWW-Authenticate": "Bearer"} if self.status == 401 else headers


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
    kept: list[Any] = []
    for i, part in enumerate(where):
        before = where[i - 1] if i else None
        tag = part in _TAGS and (isinstance(before, int) or before == "response_format")
        if not tag and not (isinstance(part, str) and ("[" in part or (part.istitle() and "_" not in part))):
            kept.append(part)
    return kept
