"""What a request passes before anything reads it: the address it was sent to, the key, the size of its body."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ziphius.serve.contracts.errors import ApiError
from ziphius.serve.wire.keys import is_loopback
from ziphius.serve.wire.service import Service

_log = logging.getLogger("ziphius.serve")
_GUARDED = ("/v1", "/metrics", "/tokenize", "/detokenize")
# DeepSeek's other base addresses: what is asked below them is asked below /v1.
_BASES = ("/beta/v1/", "/beta/", "/")
_BELOW_V1 = ("chat/completions", "completions", "models", "embeddings")


_KNOWN = {"/metrics", "/tokenize", "/detokenize"} | {f"/v1/{below}" for below in _BELOW_V1}


class Gate:
    """ASGI middleware. Leaves the name behind the key in `scope["state"]["owner"]`, and the body read."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if (path := canonical(scope["path"])) != scope["path"]:
            scope = {**scope, "path": path, "raw_path": path.encode()}
        headers = Headers(scope=scope)
        try:
            self._check_host(headers)
            scope.setdefault("state", {})["owner"] = self._owner(scope, headers)
            body = await self._body(headers, receive)
        except ApiError as error:
            self.service.refuse(known(scope["path"]), error)
            await answer(error)(scope, receive, send)
            return
        began = False

        async def watched(message: Message) -> None:
            nonlocal began
            began = True
            await send(message)

        try:
            await self.app(scope, _replay(body, receive), watched)
        except Exception:  # a fault of this server, which costs its own request and no other
            _log.exception("a request failed")
            if not began:
                failed = ApiError(500, "the server failed at this request; its log says how")
                self.service.refuse(known(scope["path"]), failed)
                await answer(failed)(scope, receive, send)

    def _check_host(self, headers: Headers) -> None:
        """A page of another site whose name was made to mean this machine must not reach a service without keys."""
        if self.service.keys.hashes or not is_loopback(self.service.settings.host):
            return
        host = headers.get("host", "localhost")
        name = host[1 : host.find("]")] if host.startswith("[") else host.partition(":")[0]
        if not is_loopback(name):
            raise ApiError(
                400, f"this server answers at {self.service.settings.host}, not at {name!r}", code="wrong_host"
            )

    def _owner(self, scope: Scope, headers: Headers) -> str:
        if not scope["path"].startswith(_GUARDED):
            return "anyone"
        owner = self.service.keys.owner(headers.get("authorization"))
        if owner is None:
            raise ApiError(401, "no valid API key: send one as `Authorization: Bearer KEY`", code="invalid_api_key")
        return owner

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        limit = self.service.settings.max_body_bytes
        too_large = ApiError(413, f"the body is larger than {limit} bytes; send less", code="body_too_large")
        if (length := headers.get("content-length", "")).isdecimal() and int(length) > limit:
            raise too_large
        parts: list[bytes] = []
        size, more = 0, True
        try:
            async with asyncio.timeout(self.service.settings.read_seconds):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ApiError(400, "the connection closed before the body was whole", code="incomplete_body")
                    parts.append(message.get("body", b""))
                    size, more = size + len(parts[-1]), message.get("more_body", False)
                    if size > limit:
                        raise too_large
        except TimeoutError:
            raise ApiError(
                400, f"the body was not whole after {self.service.settings.read_seconds:g} s", code="incomplete_body"
            ) from None
        return b"".join(parts)


def answer(error: ApiError) -> JSONResponse:
    """A refusal as a response."""
    return JSONResponse(error.body, error.status, headers=error.headers)


def _replay(body: bytes, receive: Receive) -> Receive:
    """`receive` with the body that was taken from it, whole."""
    waiting: list[dict[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay


def canonical(path: str) -> str:
    """A path with the base address that the routes have: `/beta/chat/completions` is `/v1/chat/completions`."""
    for base in _BASES:
        below = path.removeprefix(base)
        if below != path and (below in _BELOW_V1 or below.startswith("models/")):
            return f"/v1/{below}"
    return path


def known(path: str) -> str:
    """A path as a metric's label: whatever else is asked for must not make labels without end."""
    return path if path in _KNOWN else "other"
