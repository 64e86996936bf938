"""Work that grows with what a client sends, away from the event loop, and the large apart from the small.

Python runs one thread at a time, so that many threads with much to do would slow down everybody else as much as one in
the loop. Large pieces are therefore worked on one after the other, in turns between those they are for, with a pause
after each that is as long as the piece took.
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
        self._small = ThreadPoolExecutor(4, "small")
        self._large = ThreadPoolExecutor(1, "large")
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self._begun: deque[asyncio.Future[None]] = deque()  # what has been read goes first: it takes most memory
        self._taken = False

    async def run(self, work: Callable[..., T], *given: Any, size: int | None = None) -> T:
        """`work(*given)`, in the lane for its `size` in bytes: that of the request's body where none is given."""
        return await self._run(partial(work, *given), asking.get().size if size is None else size, begun=True)

    async def read(self, work: Callable[..., T], *given: Any) -> T:
        """`work(*given)`, which reads a body; at once where that is tiny."""
        size = asking.get().size
        return work(*given) if size <= _TINY else await self._run(partial(work, *given), size, begun=False)

    def close(self) -> None:
        """Start nothing more; what runs ends by itself."""
        self._small.shutdown(wait=False, cancel_futures=True)
        self._large.shutdown(wait=False, cancel_futures=True)

    async def _run(self, work: Callable[[], T], size: int, begun: bool) -> T:
        loop = asyncio.get_running_loop()
        if size <= LARGE:
            return await loop.run_in_executor(self._small, work)
        await self._turn(asking.get().party, begun)
        began = loop.time()

        def ended(done: asyncio.Future[T]) -> None:
            if not done.cancelled():
                done.exception()  # whoever asked may be gone
            loop.call_later(min(loop.time() - began, _LONGEST_PAUSE), self._next)

        working = loop.run_in_executor(self._large, _tidied, work)
        working.add_done_callback(ended)
        return await asyncio.shield(working)

    async def _turn(self, party: str, begun: bool) -> None:
        if not self._taken:
            self._taken = True
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        (self._begun if begun else self._waiting.setdefault(party, deque())).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it came at the same moment
                self._next()
            raise

    def _next(self) -> None:
        """The turn passes to what has been read, then to the next party, and there to who has waited longest."""
        while self._begun or self._waiting:
            if self._begun:
                turn = self._begun.popleft()
            else:
                party, turns = self._waiting.popitem(last=False)
                turn = turns.popleft()
                if turns:
                    self._waiting[party] = turns
            if not turn.done():  # else whoever waited has gone away
                turn.set_result(None)
                return
        self._taken = False


def _tidied(work: Callable[[], T]) -> T:
    """What `work` returns; the memory that it took and freed goes back to the system, where the C library can."""
    try:
        return work()
    finally:
        if _TRIM is not None:
            _TRIM(0)
