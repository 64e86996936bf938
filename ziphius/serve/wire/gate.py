"""What a request passes before anything reads it: the address it was sent to, the key, the size of its body."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import Counter
from dataclasses import replace
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ziphius.serve.contracts.anthropic.reply import as_message_error
from ziphius.serve.contracts.errors import ApiError
from ziphius.serve.wire.addresses import is_loopback
from ziphius.serve.wire.lanes import LARGE, Asking, asking
from ziphius.serve.wire.paths import canonical, tidy
from ziphius.serve.wire.service import Service

_log = logging.getLogger("ziphius.serve")
_OPEN = ("/", "/health", "/openapi.json")  # and the page's files: what no key is asked for
_PAGE = "/page/"
DEEPSEEKS = "/anthropic"  # under which DeepSeek has Anthropic's API
MESSAGES = "/v1/messages"
COUNT_TOKENS = f"{MESSAGES}/count_tokens"


class Gate:
    """ASGI middleware. Leaves who asks in `lanes.asking`, and the body read. HEAD is GET, whose body the server leaves
    out.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.service = app, service
        self._held: Counter[str] = Counter()  # bytes of bodies beyond what is small, by party

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if (path := canonical(tidy(scope["path"]))) != scope["path"]:
            scope = {**scope, "path": path, "raw_path": path.encode()}
        body = _Body()
        id = f"req_{secrets.token_hex(12)}"
        asking.set(Asking(address=(scope.get("client") or ("",))[0], id=id))
        send = _naming(send, "request-id" if _is_message(path) else "x-request-id", id)
        try:
            headers = Headers(scope=scope)
            self._check_host(headers)
            asks = self._who(scope, headers)
            await self._read(body, headers, receive, asks.party)
            asking.set(replace(asks, size=body.size))
            if scope["method"] == "HEAD":
                scope = {**scope, "method": "GET"}
            await self._pass_on(scope, _replay(body.take(), receive), send)
        except ApiError as error:
            self.service.refuse(scope["path"], error)
            await answer(error, scope["path"])(scope, receive, send)
        finally:
            self._held[asking.get().party] -= body.held
            self._held += Counter()  # forget who holds nothing

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = False

        async def watched(message: Message) -> None:
            nonlocal began
            began = True
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception:  # a fault of this server, which costs its own request and no other
            _log.exception("a request failed")
            if not began:
                raise ApiError(500, "the server failed at this request; its log says how") from None

    def _check_host(self, headers: Headers) -> None:
        """A page of another site whose name was made to mean this machine must not reach a service without keys."""
        if self.service.keys.guarded or not is_loopback(self.service.settings.host):
            return
        host = headers.get("host", "localhost")
        name = host[1 : host.find("]")] if host.startswith("[") else host.partition(":")[0]
        if not is_loopback(name.lower()):
            raise ApiError(
                400, f"this server answers at {self.service.settings.host}, not at {name!r}", code="wrong_host"
            )

    def _who(self, scope: Scope, headers: Headers) -> Asking:
        """Who asks. Raises ApiError: 401 without a key where one is needed, 429 where its allowance is used up."""
        asks = asking.get()
        if scope["path"] in _OPEN or scope["path"].startswith(_PAGE) or not self.service.keys.guarded:
            return asks
        key = self.service.keys.find(headers.get("authorization"), headers.get("x-api-key"))
        if key is None:
            raise ApiError(
                401, "no valid API key: send one as `Authorization: Bearer KEY`, or as `x-api-key: KEY`",
                code="invalid_api_key",
            )  # fmt: skip
        asks = replace(asks, owner=key.name, has_key=True)
        asking.set(asks)  # what is refused from here on is in the key's name
        if scope["method"] == "POST":
            self.service.allowances.enter(key)
        return asks

    async def _read(self, body: _Body, headers: Headers, receive: Receive, party: str) -> None:
        """Take in the body as it comes. Raises ApiError for one that is too large, or too slow."""
        settings = self.service.settings
        if (coding := headers.get("content-encoding", "identity").strip().lower()) != "identity":
            raise ApiError(415, f"a body with Content-Encoding {coding!r} is not read here; send it as it is")
        too_large = ApiError(
            413, f"the body is larger than {settings.max_body_bytes} bytes; send less", code="body_too_large"
        )
        if (length := headers.get("content-length", "")).isdecimal() and int(length[:20]) > settings.max_body_bytes:
            raise too_large
        more = True
        try:
            async with asyncio.timeout(settings.read_seconds):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ApiError(400, "the connection closed before the body was whole", code="incomplete_body")
                    self._hold(body, message.get("body", b""), party)
                    more = message.get("more_body", False)
                    if body.size > settings.max_body_bytes:
                        raise too_large
        except TimeoutError:
            raise ApiError(
                400, f"the body was not whole after {settings.read_seconds:g} s", code="incomplete_body"
            ) from None

    def _hold(self, body: _Body, part: bytes, party: str) -> None:
        """Add a part to a body. Raises ApiError (503) where bodies under way take all the memory they may."""
        body.parts.append(part)
        body.size += len(part)
        grown = max(0, body.size - LARGE) - body.held
        most = self.service.settings.max_bodies_bytes
        if grown and (self._held.total() + grown > most or self._held[party] + grown > most // 2):
            raise ApiError(
                503, "the requests under way take all the memory there is for them; send this one again soon",
                code="bodies_too_large", wait=1,
            )  # fmt: skip
        body.held += grown
        self._held[party] += grown


class _Body:
    """A body under way. `held` bytes of it are accounted for."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.size = self.held = 0

    def take(self) -> bytes:
        """The body whole; the parts are let go."""
        whole = b"".join(self.parts)
        self.parts.clear()
        return whole


def answer(error: ApiError, path: str) -> JSONResponse:
    """A refusal as a response, in the form of the API that `path` belongs to."""
    if _is_message(path):
        status, body = as_message_error(error, asking.get().id)
        return JSONResponse(body, status, headers=error.headers)
    return JSONResponse(error.body, error.status, headers=error.headers)


def _is_message(path: str) -> bool:
    return path.removeprefix(DEEPSEEKS).startswith(MESSAGES)


def _naming(send: Send, header: str, id: str) -> Send:
    """`send` with a header that names the request, as the log does."""

    async def naming(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], (header.encode(), id.encode())]}
        await send(message)

    return naming


def _replay(body: bytes, receive: Receive) -> Receive:
    """`receive` with the body that was taken from it, whole."""
    waiting: list[dict[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay
