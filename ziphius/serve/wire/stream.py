"""Server-sent events: a reader that goes away or stops reading ends its own request and nothing else.

Source of the format: the WHATWG HTML standard, server-sent events.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ziphius.serve.contracts.errors import ApiError

DONE = "data: [DONE]\n\n"
KEEP_ALIVE = ": keep-alive\n\n"
T = TypeVar("T")


def event(body: Any, name: str | None = None) -> str:
    """One event that holds `body` as JSON, with a `name` where the API gives its events one."""
    line = "" if name is None else f"event: {name}\n"
    return f"{line}data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n"


class ClientLeft(Exception):
    """The client closed the connection."""


class EventStream(Response):
    """Sends events as they come, and calls `close` at the end, whatever the end is.

    The events stop when the client leaves, or leaves what was sent unread for `write_seconds`.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[str, None], close: Callable[[], None], write_seconds: float) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events, self._close, self._write_seconds = events, close, write_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await unless_client_leaves(self._pump(send), receive)
        except (ClientLeft, TimeoutError):
            pass
        finally:
            self._close()
            await self._events.aclose()

    async def _pump(self, send: Send) -> None:
        async for text in self._events:
            async with asyncio.timeout(self._write_seconds):
                await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def with_errors(events: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    """The events; a failure under way becomes an event of its own, for the status was sent long ago."""
    try:
        async for text in events:
            yield text
    except ApiError as error:
        yield event(error.body)
        yield DONE


async def unless_client_leaves(work: Awaitable[T], receive: Receive) -> T:
    """The result of `work`, which is cancelled when the client goes away. Raises ClientLeft then."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_leaves(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientLeft
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _leaves(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
