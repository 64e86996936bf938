"""The engine in a thread of its own, and the bridge between it and the event loop."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Protocol

from ziphius.engine.request import EngineStats, Request, Update
from ziphius.serve.wire.hold import Prepares, hold

_log = logging.getLogger("ziphius.serve")
_AT_ONCE = 256  # updates
_TRIES = 3  # of an order that fails


class Samples(Prepares, Protocol):
    """What the service needs of `ziphius.engine.recovery.Recovery`."""

    broken: str | None

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
        self.places: dict[int, int] = {}  # by the engine's ids
        self.seconds = 0.0
        self._open = {(place, sample) for place, request in enumerate(requests) for sample in range(request.samples)}
        self._seen: set[int] = set()
        self._began_busy, self._began_tokens, self._own_tokens = busy, tokens, 0
        self._waiting: deque[tuple[int, Update]] = deque()
        self._news = asyncio.Event()

    @property
    def done(self) -> bool:
        """Whether every sample has ended; updates may still wait to be taken."""
        return not self._open

    async def take(self) -> list[tuple[int, Update]]:
        """The next updates, at least one, each with the place of its request; not too many at once for the loop."""
        await self._news.wait()
        updates = [self._waiting.popleft() for _ in range(min(_AT_ONCE, len(self._waiting)))]
        if not self._waiting:
            self._news.clear()
        return updates

    def put(self, update: Update, busy: float, tokens: int) -> None:
        """Add what a step brought; `busy` seconds and `tokens` are the engine's since it was made."""
        place = self.places[update.id]
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
        self._tickets: dict[int, Ticket] = {}
        self._orders: deque[Callable[[], None]] = deque()
        self._tries = 0  # of the first order
        self._wake = threading.Condition()
        self._stopping = False
        self._tokens = 0
        self._busy = 0.0  # as the engine's thread knows it
        self._updates: list[Update] = []  # that have not been posted
        self._mail: list[Callable[[], None]] = []
        self._unheard = False  # whether the loop has not been told of all its mail
        self._mail_lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def broken(self) -> str | None:
        """Why nothing can be served at present."""
        return self.engine.broken

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
        """Hand requests to the engine. Raises ValueError for what it cannot serve, RuntimeError where it fails."""
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
        ids = [id for id in ticket.places if self._tickets.pop(id, None) is not None]
        if ids:
            self._order(lambda: self._cancel(ids))

    # --- in the engine's thread --------------------------------------------------------------------------------------

    def _cancel(self, ids: Sequence[int]) -> None:
        for id in ids:
            self.engine.cancel(id)

    def _add(self, ticket: Ticket, accepted: asyncio.Future[Ticket]) -> None:
        """All of the ticket's requests, or none."""
        ids: list[int] = []
        try:
            for request in ticket.requests:
                ids.append(self.engine.add(request))
            self._post(partial(self._accept, accepted, ticket, ids))
        except BaseException as error:
            self._order(lambda: self._cancel(ids))
            self._post(partial(self._refuse, accepted, error))

    def _post(self, news: Callable[[], None]) -> None:
        """Leave news for the loop, which hears them in order."""
        with self._mail_lock:
            self._mail.append(news)
            self._unheard = True

    def _run(self) -> None:
        while not self._stopping:
            try:
                self._turn()
            except BaseException:  # whatever it was, the thread must go on for all others
                _log.exception("the engine's thread failed, and goes on")
                time.sleep(0.01)

    def _turn(self) -> None:
        """Follow the orders that have come and take a step. Where anything fails, the next turn makes up for it."""
        if self._unheard and self._loop is not None:
            with suppress(RuntimeError):  # it has closed
                self._loop.call_soon_threadsafe(self._read_mail)
            self._unheard = False
        with self._wake:
            while not (self._orders or self._stopping or self._updates or self.engine.has_work):
                self._wake.wait()
        self._follow_orders()
        if not self._stopping and (self._updates or self.engine.has_work):
            began = time.perf_counter()
            try:
                self._updates += self.engine.step()
            finally:
                self._busy += time.perf_counter() - began
            self._post_updates()

    def _follow_orders(self) -> None:
        while self._orders:
            self._tries += 1
            if self._tries <= _TRIES:
                self._orders[0]()
            self._orders.popleft()
            self._tries = 0

    def _post_updates(self) -> None:
        news = partial(self._deliver, self._updates, self.engine.stats(), self._busy)
        with self._mail_lock:
            self._mail.append(news)
            self._unheard, self._updates = True, []  # at once: none is lost, none is told twice

    # --- in the loop -------------------------------------------------------------------------------------------------

    def _order(self, order: Callable[[], None]) -> None:
        with self._wake:
            self._orders.append(order)
            self._wake.notify()

    def _read_mail(self) -> None:
        with self._mail_lock:
            mail, self._mail = self._mail, []
        for news in mail:
            asyncio.get_running_loop().call_soon(news)  # one that fails keeps none from the others

    def _accept(self, accepted: asyncio.Future[Ticket], ticket: Ticket, ids: list[int]) -> None:
        if accepted.done():  # an order that failed when all was done was followed again
            self._order(lambda: self._cancel(ids))
            return
        ticket.places = {id: place for place, id in enumerate(ids)}
        self._tickets |= dict.fromkeys(ids, ticket)
        accepted.set_result(ticket)

    def _refuse(self, accepted: asyncio.Future[Ticket], error: BaseException) -> None:
        if not accepted.done():
            if isinstance(error, StopIteration):  # which no future takes
                error = RuntimeError(f"{type(error).__name__}: {error}")
            accepted.set_exception(error)

    def _deliver(self, updates: list[Update], stats: EngineStats, busy: float) -> None:
        """What a step brought."""
        self.stats, self.busy_seconds = stats, busy
        self._tokens = stats.generated_tokens + stats.miss_tokens
        for update in updates:
            ticket = self._tickets.get(update.id)
            if ticket is not None:
                ticket.put(update, busy, self._tokens)
                if ticket.done:
                    for id in ticket.places:
                        self._tickets.pop(id, None)
