"""A request's body as what the API knows, read and checked where it holds up nobody."""

from __future__ import annotations

import gc
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from fastapi.routing import APIRoute
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import from_json
from starlette.requests import Request
from starlette.responses import Response

from ziphius.serve.contracts.errors import ApiError, of_validation
from ziphius.serve.wire.lanes import LARGE, Lanes

_MOST_FIELDS = 256  # of the body, or of one message or tool in it; the APIs know some fifty
_MOST_FAULTS = 1000
_BRACKETS = 100_000  # that any request may have, and some for each token that the model reads
_NOT_JSON = "the body must be a JSON object, sent as Content-Type: application/json"


def route_class(lanes: Lanes, context: int) -> type[APIRoute]:
    """The class of an application's routes. FastAPI would read bodies in the event loop; these routes do it in a lane.

    An endpoint's signature stays FastAPI's: `asked: SomeRequest`. `context` is the model's, in tokens.
    """

    class BodyRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()
            if self.body_field is None:
                return handle
            kind: Any = self.body_field.field_info.annotation
            adapter: TypeAdapter[Any] = TypeAdapter(kind)

            async def handle_read(request: Request) -> Response:
                _check_type(request)
                asked = await lanes.read(read, await request.body(), adapter, context)
                return await handle(_Read(request, asked))

            return handle_read

    return BodyRoute


class _Read(Request):
    """A request whose body has been read: FastAPI finds the object ready."""

    def __init__(self, request: Request, asked: BaseModel) -> None:
        super().__init__(request.scope, request.receive)
        self._asked = asked

    async def body(self) -> bytes:
        return b"read"

    async def json(self) -> Any:
        return self._asked


def read(raw: bytes, adapter: TypeAdapter[Any], context: int) -> Any:
    """The object that a body spells. Raises ApiError: 400 for what is no JSON, or more than any context holds, 422."""
    with _no_collection(len(raw)):
        _check_brackets(raw, context)
        body = _parse(raw)
        try:
            _check_length(body, context)
            return adapter.validate_python(body)
        except ValidationError as error:
            faults = error.error_count()
            first = error.errors(include_url=False, include_input=False) if faults <= _MOST_FAULTS else []
        except RecursionError:
            raise ApiError(422, "the body is nested too deeply", code="nested_too_deeply") from None
        finally:
            body.clear()  # here and now: a refusal's traceback would hold it until some collection
    if not first:
        raise ApiError(422, f"{faults:,} things are wrong with the body, too many to name", code="too_many_faults")
    raise of_validation(first)


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        body = from_json(raw.removeprefix(b"\xef\xbb\xbf"), allow_inf_nan=False)
    except ValueError as error:
        reason = str(error)
        if "recursion limit" in reason:
            raise ApiError(422, f"the body is nested too deeply ({reason})", code="nested_too_deeply") from None
        if "hex escape" in reason:
            raise ApiError(
                422,
                f"the body holds \\u escapes that spell no character, such as one half of a surrogate pair: {reason}",
            ) from None
        raise ApiError(400, f"the body is not JSON: {reason}", code="json_invalid") from None
    if not isinstance(body, dict):
        raise ApiError(400, _NOT_JSON)
    return body


def _check_brackets(raw: bytes, context: int) -> None:
    """A list takes two bytes of a body and a hundred of memory; nothing that the model could read has so many."""
    brackets = raw.count(b"[") + raw.count(b"{")
    if brackets > _BRACKETS + 8 * context:
        raise ApiError(
            422, f"the body holds {brackets:,} lists and objects, more than a request to this model can need",
            code="too_many_parts",
        )  # fmt: skip


def _check_length(body: dict[str, Any], context: int) -> None:
    """What no context can hold is refused before anything is made of it."""
    for where in (body, *(entry for value in body.values() if isinstance(value, list) for entry in value[:context])):
        if isinstance(where, dict) and len(where) > _MOST_FIELDS:
            raise ApiError(
                422, f"{len(where):,} fields are at one place; no request has more than {_MOST_FIELDS} there"
            )
    for name, value in body.items():
        if isinstance(value, list) and len(value) > context:
            raise ApiError(
                400,
                f"{name} has {len(value)} entries; the model reads and writes {context} tokens at most: shorten {name}",
                param=name,
                code="context_length_exceeded",
            )


def _check_type(request: Request) -> None:
    """A page of another site can send text without asking the browser's leave, but no JSON."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not (kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))):
        raise ApiError(400, _NOT_JSON)


@contextmanager
def _no_collection(size: int) -> Iterator[None]:
    """A large body makes a million objects and no garbage: looking for some would stop all threads for a second.

    There is one lane for the large, so that no two of these blocks overlap.
    """
    if size <= LARGE or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
