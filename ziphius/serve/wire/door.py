"""Who may be connected: so many in all and from one address, and nobody for long who asks for nothing."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource
import socket
import time
from collections import Counter
from contextlib import suppress
from functools import partial
from typing import Any

from ziphius.serve.contracts.errors import ApiError
from ziphius.serve.wire.addresses import home
from ziphius.serve.wire.log import Seldom
from ziphius.serve.wire.protocol import Guarded, response
from ziphius.serve.wire.settings import ServeSettings

_log = logging.getLogger("ziphius.serve")
_SPARE = 32  # files that the service opens beside its connections
_MOST = 4096
_GONE = (errno.ECONNABORTED, errno.EINTR, errno.EPROTO, errno.EPERM)  # the client is, or a packet filter forbids it
_LOOK = 0.5  # seconds between two looks at who has waited too long
_BREATH = 0.05  # seconds without accepting when the system has no file left


class Door:
    """Accepts connections. When there are too many, the one that has asked for nothing longest gives way to the new.

    A connection whose request is whole and being answered never gives way; where all are of that kind, the new one is
    told 503. Where the system has no file left, there are fewer places for a while. `turned_away` counts by reason.
    """

    def __init__(self, listener: socket.socket, settings: ServeSettings) -> None:
        self.listener, self.settings = listener, settings
        self.most = self._wanted = settings.max_connections or places()
        self.most_per_address = settings.max_connections_per_address or max(1, self.most // 2)
        self.open: set[Guarded] = set()
        self.by_address: Counter[str] = Counter()
        self.turned_away: Counter[str] = Counter()
        self._seldom = Seldom(_log, settings.header_seconds)
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, make: partial[Guarded]) -> None:
        """Begin to accept; `make(door=…)` is a new connection's protocol."""
        self.listener.setblocking(False)
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._accept(partial(make, door=self))), loop.create_task(self._sweep())]

    async def close(self) -> None:
        """Accept no more; those who are connected stay, and are looked after no longer."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.listener.close()

    def entered(self, connection: Guarded) -> None:
        self.open.add(connection)
        self.by_address[home(connection.address)] += 1

    def left(self, connection: Guarded) -> None:
        if connection in self.open:
            self.open.discard(connection)
            self.by_address[home(connection.address)] -= 1
            self.by_address += Counter()  # forget who has none

    def turn_away(self, reason: str, address: str, **more: Any) -> None:
        """Count a connection that was closed against its will; the log has a line a kind every few seconds."""
        self.turned_away[reason] += 1
        self._seldom.say(reason, {"event": "connection", "reason": reason, "client": address, **more})

    async def _accept(self, make: partial[Guarded]) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, where = await loop.sock_accept(self.listener)
            except OSError as error:  # no file left, or the client is gone already
                if error.errno not in _GONE:
                    self.turn_away("no_file_left", "", error=str(error), open=len(self.open))
                    self.most = max(1, min(self.most, len(self.open) - _SPARE // 2))
                    await asyncio.sleep(0 if self._give_way(self.open) else _BREATH)
                continue
            try:
                # asyncio does so for its own sockets alone; without it, an answer in two parts takes 40 ms
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self._has_room(str(where[0])):
                    await loop.connect_accepted_socket(make, accepted)
                else:
                    _tell(accepted, _FULL)
            except OSError:  # the client is gone already
                accepted.close()

    def _has_room(self, address: str) -> bool:
        """Make room for one more from `address`; False where nobody can give way."""
        if self.by_address[home(address)] >= self.most_per_address:
            same = {connection for connection in self.open if home(connection.address) == home(address)}
            if not self._give_way(same, limit="per address", most=self.most_per_address):
                return False
        while len(self.open) >= self.most:
            if not self._give_way(self.open, limit="in all", most=self.most):
                return False
        return True

    def _give_way(self, among: set[Guarded], **about: Any) -> bool:
        """Close the connection that has waited longest without asking, those that never asked before all others."""
        waiting = [connection for connection in among if not connection.is_answered]
        if not waiting:
            if about:
                self.turn_away("full", "", open=len(self.open), **about)
            return False
        first = min(waiting, key=lambda connection: (connection.has_asked, connection.since))
        self.turn_away("gave_way", first.address, open=len(self.open), **about)
        self.left(first)
        first.transport.abort()
        return True

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_LOOK)
            self.most = min(self.most + 1, self._wanted)  # what took the files may have let go of them
            now = time.monotonic()
            for connection in list(self.open):
                reason = connection.overdue(now)
                if reason is not None:
                    self.turn_away(reason, connection.address)


_FULL = ApiError(
    503, "all connections that this server can hold are being answered; come back later", code="full", wait=1
)


def places() -> int:
    """How many connections the process's limit of open files leaves room for, 4,096 at most."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if soft == resource.RLIM_INFINITY:
        return _MOST
    return max(4, min(_MOST, soft - _open_files() - _SPARE))


def _open_files() -> int:
    for folder in ("/proc/self/fd", "/dev/fd"):
        with suppress(OSError):
            return len(os.listdir(folder))
    return 64


def _tell(accepted: socket.socket, error: ApiError) -> None:
    """A refusal to somebody who has not been let in, as far as the socket takes it at once."""
    accepted.setblocking(False)
    with suppress(OSError):
        accepted.send(response(error))
    accepted.close()
