"""The engine in a thread of its own, and the bridge between it and the event loop."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from ziphius.engine.request import EngineStats, Request, Update
from ziphius.serve.wire.hold import Prepares, hold

_log = logging.getLogger("ziphius.serve")
_AT_ONCE = 256  # updates
_GIVES_UP = 3  # steps that fail one after the other


class Samples(Prepares, Protocol):
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
    """One or more engine requests under way together. Their updates wait here, so that a slow reader holds up nobody.

    What waits is bounded by the requests themselves: at most their samples' tokens. `seconds` is their share of the
    engine's time so far.
    """

    def __init__(self, requests: Sequence[Request], busy: float, tokens: int) -> None:
        self.requests = requests
        self.ids: list[int] = []
        self.seconds = 0.0
        self._open = {(place, sample) for place, request in enumerate(requests) for sample in range(request.samples)}
        self._seen: set[int] = set()
        self._began_busy, self._began_tokens, self._own_tokens = busy, tokens, 0
        self._waiting: list[tuple[int, Update]] = []
        self._news = asyncio.Event()

    @property
    def done(self) -> bool:
        """Whether every sample has ended; updates may still wait to be taken."""
        return not self._open

    async def take(self) -> list[tuple[int, Update]]:
        """The next updates, at least one, each with the place of its request; not too many at once for the loop."""
        await self._news.wait()
        updates, self._waiting = self._waiting[:_AT_ONCE], self._waiting[_AT_ONCE:]
        if not self._waiting:
            self._news.clear()
        return updates

    def put(self, update: Update, busy: float, tokens: int) -> None:
        """Add what a step brought; `busy` seconds and `tokens` are the engine's since it was made."""
        place = self.ids.index(update.id)
        if place not in self._seen:
            self._seen.add(place)
            self._own_tokens += len(self.requests[place].prompt) - update.cached_tokens
        self._own_tokens += len(update.token_ids)
        share = self._own_tokens / max(tokens - self._began_tokens, self._own_tokens, 1)
        self.seconds = max(self.seconds, (busy - self._began_busy) * share)
        if update.finish_reason is not None:
            self._open.discard((place, update.sample))
        self._waiting.append((place, update))
        self._news.set()

    def fail(self, message: str) -> None:
        """End every sample that is open with an error."""
        for place, sample in sorted(self._open):
            failed = Update(self.ids[place], sample, [], [], finish_reason="error", error=message)
            self._waiting.append((place, failed))
        self._open.clear()
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
        self._mail: list[Callable[[], None]] = []
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

    async def submit(self, requests: Sequence[Request]) -> Ticket:
        """Hand requests to the engine. Raises ValueError for what it cannot serve, RuntimeError once it is broken."""
        if self.broken is not None:
            raise RuntimeError(self.broken)
        release = await hold(self.engine, requests)
        ticket = Ticket(requests, self.busy_seconds, self._tokens)
        accepted: asyncio.Future[Ticket] = asyncio.get_running_loop().create_future()
        accepted.add_done_callback(lambda _: release())
        self._order(lambda: self._add(ticket, accepted))
        try:
            return await asyncio.shield(accepted)
        except asyncio.CancelledError:
            accepted.add_done_callback(lambda made: None if made.exception() else self.cancel(ticket))
            raise

    def cancel(self, ticket: Ticket) -> None:
        """Free what a ticket's requests hold. Does nothing once they have ended."""
        ids = [id for id in ticket.ids if self._tickets.pop(id, None) is not None]
        if ids:
            self._order(lambda: self._cancel(ids))

    def _cancel(self, ids: Sequence[int]) -> None:
        for id in ids:
            try:
                self.engine.cancel(id)
            except Exception:  # the thread must go on for all others
                _log.exception("a request could not be cancelled")

    def _add(self, ticket: Ticket, accepted: asyncio.Future[Ticket]) -> None:
        """In the engine's thread: all of the ticket's requests, or none."""
        ids: list[int] = []
        try:
            for request in ticket.requests:
                ids.append(self.engine.add(request))
        except Exception as error:
            self._cancel(ids)
            self._post(partial(accepted.set_exception, error))
            return
        self._post(partial(self._accept, accepted, ticket, ids))

    def _accept(self, accepted: asyncio.Future[Ticket], ticket: Ticket, ids: list[int]) -> None:
        ticket.ids = ids
        self._tickets |= dict.fromkeys(ids, ticket)
        accepted.set_result(ticket)
        if self.broken is not None:  # in the meantime
            self._fail(self.broken, broken=True)

    def _order(self, order: Callable[[], None]) -> None:
        with self._wake:
            self._orders.append(order)
            self._wake.notify()

    def _post(self, news: Callable[[], None]) -> None:
        """Leave news for the loop, which hears them in order and is woken once for all that wait."""
        assert self._loop is not None
        with self._mail_lock:
            first = not self._mail
            self._mail.append(news)
        if first and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._read_mail)

    def _read_mail(self) -> None:
        with self._mail_lock:
            mail, self._mail = self._mail, []
        for news in mail:
            news()

    def _deliver(self, updates: list[Update], stats: EngineStats, busy: float) -> None:
        """What a step brought."""
        self.stats, self.busy_seconds = stats, busy
        self._tokens = stats.generated_tokens + stats.miss_tokens
        for update in updates:
            ticket = self._tickets.get(update.id)
            if ticket is None:
                continue
            ticket.put(update, busy, self._tokens)
            if ticket.done:
                for id in ticket.ids:
                    self._tickets.pop(id, None)

    def _fail(self, message: str, broken: bool) -> None:
        """Every request under way ends with an error."""
        if broken:
            self.broken = message
        for ticket in set(self._tickets.values()):
            self.cancel(ticket)
            ticket.fail(message)

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
                self._post(partial(self._fail, f"the engine failed: {error}", failures >= _GIVES_UP))
                time.sleep(0.05)  # so that the loop can cancel what was under way
                continue
            busy += time.perf_counter() - began
            self._post(partial(self._deliver, updates, self.engine.stats(), busy))
