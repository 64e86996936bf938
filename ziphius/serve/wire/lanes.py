"""Work that grows with what a client sends, away from the event loop, and the large apart from the small.

Python runs one thread at a time, so that many threads with much to do would slow down everybody else as much as one in
the loop. Large pieces are therefore worked on one after the other, with a pause after each that is as long as the piece
took. Large or small, those they are for take turns, so that who sends many waits longest.
"""

from __future__ import annotations

import asyncio
import ctypes
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")
_Waiting = OrderedDict[str, deque[asyncio.Future[None]]]  # by party; the next is first
LARGE = 64 * 2**10  # bytes
_TINY = 4 * 2**10  # bytes that are read sooner than a thread is woken
_LONGEST_PAUSE = 1.0
_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's


@dataclass(frozen=True)
class Asking:
    """Who asks: the name behind the key, the address, and how many bytes of body they sent.

    `party` is whom turns are shared between: the key's owner, or the address where there are no keys.
    """

    owner: str = "anyone"
    address: str = ""
    has_key: bool = False
    size: int = 0

    @property
    def party(self) -> str:
        return f"key {self.owner}" if self.has_key else self.address


_NOBODY = Asking()
asking: ContextVar[Asking] = ContextVar("asking", default=_NOBODY)


class Lanes:
    """Threads for the small, one for the large. All methods belong to the event loop."""

    def __init__(self) -> None:
        self._small, self._large = _Lane("small", 4), _Lane("large", 1, rests=True)

    async def run(self, work: Callable[..., T], *given: Any, size: int | None = None) -> T:
        """`work(*given)`, in the lane for its `size` in bytes: that of the request's body where none is given."""
        asks = asking.get()
        if (asks.size if size is None else size) <= LARGE:
            return await self._small.run(partial(work, *given), asks.party)
        # what has been read goes first: it takes most memory
        return await self._large.run(partial(_tidied, partial(work, *given)), asks.party, first=True)

    async def read(self, work: Callable[..., T], *given: Any) -> T:
        """`work(*given)`, which reads a body; at once where that is tiny."""
        asks = asking.get()
        if asks.size <= _TINY:
            return work(*given)
        if asks.size <= LARGE:
            return await self._small.run(partial(work, *given), asks.party)
        return await self._large.run(partial(_tidied, partial(work, *given)), asks.party)

    def close(self) -> None:
        """Start nothing more; what runs ends by itself."""
        self._small.close()
        self._large.close()


class _Lane:
    """`at_once` threads, in turns between parties. One that `rests` pauses after each piece as long as that took."""

    def __init__(self, name: str, at_once: int, rests: bool = False) -> None:
        self._threads = ThreadPoolExecutor(at_once, name)
        self._free, self._rests = at_once, rests
        self._first: _Waiting = OrderedDict()
        self._then: _Waiting = OrderedDict()

    async def run(self, work: Callable[[], T], party: str, first: bool = False) -> T:
        """What `work` returns. `first`: before all that is not."""
        await self._turn(party, self._first if first else self._then)
        loop = asyncio.get_running_loop()
        began = loop.time()

        def ended(done: asyncio.Future[T]) -> None:
            if not done.cancelled():
                done.exception()  # whoever asked may be gone
            if self._rests:
                loop.call_later(min(loop.time() - began, _LONGEST_PAUSE), self._next)
            else:
                self._next()

        working = loop.run_in_executor(self._threads, work)
        working.add_done_callback(ended)
        return await asyncio.shield(working)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _turn(self, party: str, waiting: _Waiting) -> None:
        if self._free:
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting.setdefault(party, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it came at the same moment
                self._next()
            raise

    def _next(self) -> None:
        """The turn passes to the next party, and there to who has waited longest."""
        for waiting in (self._first, self._then):
            while waiting:
                party, turns = waiting.popitem(last=False)
                turn = turns.popleft()
                if turns:
                    waiting[party] = turns
                if not turn.done():  # else whoever waited has gone away
                    turn.set_result(None)
                    return
        self._free += 1


def _tidied(work: Callable[[], T]) -> T:
    """What `work` returns; the memory that it took and freed goes back to the system, where the C library can."""
    try:
        return work()
    finally:
        if _TRIM is not None:
            _TRIM(0)
