"""`POST /v1/responses`: items in, items out, and nothing kept between two requests."""

from __future__ import annotations

import secrets

from starlette.requests import Request
from starlette.responses import Response

from ziphius.serve.contracts.errors import ApiError
from ziphius.serve.contracts.responses.fields import in_these_words
from ziphius.serve.contracts.responses.request import ResponsesRequest
from ziphius.serve.endpoints.answer import naming_ignored, respond
from ziphius.serve.endpoints.responses.events import stream
from ziphius.serve.endpoints.responses.reply import Reply
from ziphius.serve.endpoints.turn import begin_turn
from ziphius.serve.wire.service import Service

_PATH = "/v1/responses"
_NOT_OFFERED = ("compact", "input_tokens")


async def make_response(service: Service, asked: ResponsesRequest, request: Request) -> Response:
    """The answer, whole or as a stream. Raises ApiError for what cannot be answered."""
    try:
        turn = await begin_turn(service, asked.chat, _PATH, f"resp_{secrets.token_hex(12)}", asked.left_out)
    except ApiError as error:
        error.message = in_these_words(error.message)
        error.param = in_these_words(error.param) if error.param is not None else None
        raise
    reply = Reply(turn, asked)
    events = stream(reply) if asked.stream else None
    response = await respond(turn.answer, [turn.request], request.receive, events, reply.ended)
    return naming_ignored(response, asked.left_out)


def nothing_stored(path: str) -> ApiError:
    """What a question about a response that was given is told, and one for what is not done with responses here."""
    if path in _NOT_OFFERED:
        return ApiError(404, f"{_PATH}/{path} is not offered here", code="not_offered")
    return ApiError(
        404,
        f"{_PATH}/{path[:64]}: responses are not stored here, so there is none to get, delete, cancel or list; send "
        "the whole conversation as input",
        code="not_stored",
    )
