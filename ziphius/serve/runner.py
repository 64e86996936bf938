"""The engine in a thread of its own, and the bridge between it and the event loop."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from ziphius.engine.request import EngineStats, Request, Update

_log = logging.getLogger("ziphius.serve")
_GIVES_UP = 3  # steps that fail one after the other


class Samples(Protocol):
    """What the service needs of `ziphius.engine.engine.Engine`."""

    def add(self, request: Request) -> int: ...
    def step(self) -> list[Update]: ...
    def cancel(self, id: int) -> None: ...
    @property
    def has_work(self) -> bool: ...
    def stats(self) -> EngineStats: ...
    @property
    def fingerprint(self) -> str: ...


class Ticket:
    """A request under way. Its updates wait here until they are taken, so that a slow reader holds up nobody.

    What waits is bounded by the request itself: at most its samples' tokens.
    """

    def __init__(self, request: Request, busy: float, tokens: int) -> None:
        self.id = -1
        self.request = request
        self.seconds = 0.0
        self._open = set(range(request.samples))
        self._busy, self._tokens = busy, tokens
        self._waiting: list[Update] = []
        self._own = 0
        self._news = asyncio.Event()

    @property
    def done(self) -> bool:
        """Whether every sample has ended; its updates may still wait to be taken."""
        return not self._open

    async def take(self) -> list[Update]:
        """The updates since the last call, at least one."""
        await self._news.wait()
        self._news.clear()
        updates, self._waiting = self._waiting, []
        return updates

    def _put(self, update: Update, busy: float, tokens: int) -> None:
        if not self._own:
            self._own = len(self.request.prompt) - update.cached_tokens
        self._own += len(update.token_ids)
        if update.finish_reason is not None:
            self._open.discard(update.sample)
        share = self._own / max(tokens - self._tokens, self._own)
        self.seconds = max(self.seconds, (busy - self._busy) * share)
        self._waiting.append(update)
        self._news.set()


class Runner:
    """Steps an engine as long as there is work. All methods but `start` and `stop` belong to the event loop.

    A request's share of the engine's time is that of its tokens (prompt tokens that no cache held, and its own) among
    all tokens that went through the engine while it was there.
    """

    def __init__(self, engine: Samples) -> None:
        self.engine = engine
        self.fingerprint = engine.fingerprint
        self.stats = engine.stats()
        self.busy_seconds = 0.0
        self.broken: str | None = None
        self._tickets: dict[int, Ticket] = {}
        self._orders: list[Callable[[], None]] = []
        self._wake = threading.Condition()
        self._stopping = False
        self._tokens = 0
        self._mail: list[tuple[list[Update], EngineStats, float]] = []
        self._mail_lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the step it is in; what is under way is left unfinished."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()

    async def submit(self, request: Request) -> Ticket:
        """Hand a request to the engine. Raises ValueError for what it cannot serve, RuntimeError once it is broken."""
        if self.broken is not None:
            raise RuntimeError(self.broken)
        ticket = Ticket(request, self.busy_seconds, self._tokens)
        accepted: asyncio.Future[Ticket] = asyncio.get_running_loop().create_future()

        def order() -> None:
            try:
                self._call(self._accept, accepted, ticket, self.engine.add(request), None)
            except Exception as error:
                self._call(self._accept, accepted, ticket, -1, error)

        self._order(order)
        try:
            return await asyncio.shield(accepted)
        except asyncio.CancelledError:
            accepted.add_done_callback(lambda made: made.exception() or self.cancel(ticket))
            raise

    def cancel(self, ticket: Ticket) -> None:
        """Free what a request holds. Does nothing once it has ended."""
        if self._tickets.pop(ticket.id, None) is not None and not ticket.done:
            self._order(lambda: self.engine.cancel(ticket.id))

    @property
    def under_way(self) -> int:
        return len(self._tickets)

    def _order(self, order: Callable[[], None]) -> None:
        with self._wake:
            self._orders.append(order)
            self._wake.notify()

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *arguments)

    def _accept(self, accepted: asyncio.Future[Ticket], ticket: Ticket, id: int, error: Exception | None) -> None:
        if error is not None:
            accepted.set_exception(error)
            return
        ticket.id = id
        self._tickets[id] = ticket
        accepted.set_result(ticket)

    def _post(self, updates: list[Update], stats: EngineStats, busy: float) -> None:
        """Leave the news of a step for the loop, which is woken once for all that waits."""
        with self._mail_lock:
            first = not self._mail
            self._mail.append((updates, stats, busy))
        if first:
            self._call(self._deliver)

    def _deliver(self) -> None:
        with self._mail_lock:
            mail, self._mail = self._mail, []
        for updates, stats, busy in mail:
            self.stats, self.busy_seconds = stats, busy
            self._tokens = stats.generated_tokens + stats.miss_tokens
            for update in updates:
                ticket = self._tickets.get(update.id)
                if ticket is None:
                    continue
                ticket._put(update, busy, self._tokens)
                if ticket.done:
                    del self._tickets[update.id]

    def _fail(self, message: str, broken: bool) -> None:
        """Every request under way ends with an error."""
        if broken:
            self.broken = message
        for ticket in list(self._tickets.values()):
            self.cancel(ticket)
            for sample in sorted(ticket._open):
                failed = Update(ticket.id, sample, [], [], finish_reason="error", error=message)
                ticket._put(failed, self.busy_seconds, self._tokens)

    def _run(self) -> None:
        busy, failures = 0.0, 0
        while True:
            with self._wake:
                while not (self._orders or self._stopping or (self.engine.has_work and failures < _GIVES_UP)):
                    self._wake.wait()
                orders, self._orders = self._orders, []
                if self._stopping:
                    return
            for order in orders:
                order()
            if failures >= _GIVES_UP or not self.engine.has_work:
                continue
            began = time.perf_counter()
            try:
                updates = self.engine.step()
                failures = 0
            except Exception as error:
                _log.exception("a step of the engine failed")
                failures += 1
                self._call(self._fail, f"the engine failed: {error}", failures >= _GIVES_UP)
                time.sleep(0.05)  # so that the loop can cancel what was under way
                continue
            busy += time.perf_counter() - began
            self._post(updates, self.engine.stats(), busy)
