"""A connection of uvicorn's with what uvicorn lacks: limits of time and size before a request is whole."""

from __future__ import annotations

import asyncio
import time
from http import HTTPStatus
from typing import Any, Protocol

import httptools
from starlette.responses import JSONResponse
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ziphius.serve.contracts.errors import ApiError
from ziphius.serve.wire.settings import ServeSettings


class Doorkeeper(Protocol):
    """What a connection needs of `ziphius.serve.wire.door.Door`."""

    settings: ServeSettings

    def entered(self, connection: Guarded) -> None: ...
    def left(self, connection: Guarded) -> None: ...
    def turn_away(self, reason: str, address: str) -> None: ...


class _Refused(Exception):
    """Thrown through the parser, so that it reads no further."""


class Guarded(HttpToolsProtocol):
    """What a client does before and after its request is bounded; the request itself is uvicorn's.

    `since` is when the present wait began (`time.monotonic`): for a first byte, or, once one has come, for whole
    headers. `has_asked`: whether a request of this connection has been answered.
    """

    def __init__(self, *, door: Doorkeeper, **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self.door = door
        self.address = ""
        self.since = time.monotonic()
        self.has_asked = False
        self._begun = False  # a byte of the next request is here
        self._headers_bytes = 0  # of the headers that the parser has made out
        self._idle_bytes = 0  # that came since the parser made out anything: of one endless header, say
        self._declined = b""  # the headers of a request without the offer of another protocol that they held
        self._stalled: float | None = None  # since when the client has taken nothing of what is sent
        self._refusal: ApiError | None = None

    @property
    def is_answered(self) -> bool:
        """Whether a whole request of this connection is being answered."""
        return self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body

    def overdue(self, now: float) -> str | None:
        """End the connection if its client has taken too long; says at what."""
        settings = self.door.settings
        stuck = self.flow.write_paused or (self.transport.is_closing() and self.transport.get_write_buffer_size() > 0)
        self._stalled = (self._stalled or now) if stuck else None
        if self._stalled is not None and now - self._stalled > settings.write_seconds:
            self.transport.abort()
            return "slow_reader"
        if self.transport.is_closing() or (self.cycle is not None and not self.cycle.response_complete):
            return None
        if now - self.since <= settings.header_seconds or (self.has_asked and not self._begun):
            return None  # one that has asked before may be silent for `idle_seconds`, which uvicorn counts
        if not self._begun or (self.cycle is not None and self.cycle.more_body):
            self.transport.abort()
            return "late_body" if self._begun else "silent"
        self._refusal = ApiError(
            408, f"the headers were not whole after {settings.header_seconds:g} s", code="slow_headers"
        )
        self.send_400_response("")
        return "slow_headers"

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.address = self.client[0] if self.client else ""
        self.door.entered(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.door.left(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if not self._begun:
            self._begun, self.since = True, time.monotonic()
        self._idle_bytes += len(data)
        self._unset_keepalive_if_required()
        self._feed(data)
        if self._idle_bytes > self.door.settings.max_header_bytes and not self.transport.is_closing():
            self._refusal = self._too_large()
            self.send_400_response("endless headers")

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            rest = data[offer.args[0] :]
            self.parser = httptools.HttpRequestParser(self)
            self._feed(self._declined + rest)
        except httptools.HttpParserError:
            self.send_400_response("this is not HTTP/1.1")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._headers_bytes = 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._count(len(name) + len(value) + 4)

    def on_body(self, body: bytes) -> None:
        self._idle_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._idle_bytes = 0
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def _count(self, size: int) -> None:
        """Bytes of the headers (or of the trailers), which may all have come in one piece."""
        self._headers_bytes += size
        settings = self.door.settings
        if self._headers_bytes > settings.max_header_bytes or len(self.headers) > settings.max_headers:
            self._refuse(self._too_large())

    def on_headers_complete(self) -> None:
        self._idle_bytes = 0
        if not self.parser.should_upgrade():
            super().on_headers_complete()
            return
        method = self.parser.get_method()
        if method == b"CONNECT" or self._get_upgrade() == b"websocket":
            self._refuse(ApiError(400, "this server speaks plain HTTP/1.1: no WebSocket, no tunnel", code="no_upgrade"))
        # Java's client, for one, offers to go on in HTTP/2. Declined, the same request is read once more without the
        # offer, for the parser takes whatever follows one for the new protocol.
        kept = [pair for pair in self.headers if pair[0] not in (b"upgrade", b"connection", b"http2-settings")]
        lines = [b"%b %b HTTP/1.1\r\n" % (method, self.url), *(b"%b: %b\r\n" % pair for pair in kept)]
        self._declined = b"".join([*lines, b"connection: close\r\n\r\n"])

    def on_response_complete(self) -> None:
        self.has_asked, self._begun, self.since = True, bool(self.pipeline), time.monotonic()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """What uvicorn calls for a request that is none: a refusal in the API's form, and the end of the connection."""
        error = self._refusal or ApiError(400, "this is not HTTP/1.1", code="bad_request")
        if msg:  # else `overdue` says so
            self.door.turn_away(error.code or "bad_request", self.address)
        if self.cycle is None or self.cycle.response_complete:  # else it would stand in the middle of an answer
            self.transport.write(response(error))
        self.transport.close()

    def _refuse(self, error: ApiError) -> None:
        self._refusal = error
        raise _Refused

    def _too_large(self) -> ApiError:
        settings = self.door.settings
        return ApiError(
            431,
            f"the headers exceed {settings.max_header_bytes} bytes or {settings.max_headers} lines",
            code="headers_too_large",
        )


def response(error: ApiError) -> bytes:
    """A refusal as bytes on the wire, for those whom no application answers."""
    made = JSONResponse(error.body, error.status, headers=error.headers | {"connection": "close"})
    head = f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n".encode()
    return head + b"".join(b"%s: %s\r\n" % pair for pair in made.raw_headers) + b"\r\n" + bytes(made.body)
