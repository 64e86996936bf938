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

from ziphius.serve.wire.addresses import home

T = TypeVar("T")
_Turns = deque[asyncio.Future[None]]
LARGE = 64 * 2**10  # bytes
_TINY = 4 * 2**10  # bytes that are read sooner than a thread is woken
_LONGEST_PAUSE = 1.0
_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's


@dataclass(frozen=True)
class Asking:
    """Who asks: the name behind the key, the address, how many bytes of body they sent, and the request's own name.

    `party` is whom turns are shared between: the key's owner, or the address where there are no keys.
    """

    owner: str = "anyone"
    address: str = ""
    has_key: bool = False
    size: int = 0
    id: str = ""

    @property
    def party(self) -> str:
        return f"key {self.owner}" if self.has_key else home(self.address)


_NOBODY = Asking()
asking: ContextVar[Asking] = ContextVar("asking", default=_NOBODY)


class Lanes:
    """Threads for the small, one for the large. All methods belong to the event loop."""

    def __init__(self) -> None:
        self._small, self._large = _Lane("small", 4), _Lane("large", 1, is_large=True)

    async def run(self, work: Callable[..., T], *given: Any, size: int | None = None) -> T:
        """`work(*given)`, in the lane for its `size` in bytes: that of the request's body where none is given."""
        size = asking.get().size if size is None else size
        return await self._lane(size).run(partial(work, *given), begun=True)

    async def read(self, work: Callable[..., T], *given: Any) -> T:
        """`work(*given)`, which reads a body; at once where that is tiny."""
        size = asking.get().size
        return work(*given) if size <= _TINY else await self._lane(size).run(partial(work, *given), begun=False)

    def close(self) -> None:
        """Start nothing more; what runs ends by itself."""
        self._small.close()
        self._large.close()

    def _lane(self, size: int) -> _Lane:
        return self._small if size <= LARGE else self._large


class _Lane:
    """`at_once` threads, in turns between parties. What has been read goes before what has not, for it takes most
    memory: of its own party, and where the pieces are large, of all. Large ones are followed by a pause."""

    def __init__(self, name: str, at_once: int, is_large: bool = False) -> None:
        self._threads = ThreadPoolExecutor(at_once, name)
        self._free, self._is_large = at_once, is_large
        self._waiting: OrderedDict[str, tuple[_Turns, _Turns]] = OrderedDict()  # those begun, the others; next is first

    async def run(self, work: Callable[[], T], begun: bool) -> T:
        """What `work` returns, for whoever asks."""
        await self._turn(asking.get().party, begun)
        loop = asyncio.get_running_loop()
        since = loop.time()

        def ended(done: asyncio.Future[T]) -> None:
            if not done.cancelled():
                done.exception()  # whoever asked may be gone
            if self._is_large:
                loop.call_later(min(loop.time() - since, _LONGEST_PAUSE), self._next)
            else:
                self._next()

        working = loop.run_in_executor(self._threads, partial(_tidied, work) if self._is_large else work)
        working.add_done_callback(ended)
        return await asyncio.shield(working)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _turn(self, party: str, begun: bool) -> None:
        if self._free:
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(party, (deque(), deque()))[0 if begun else 1].append(turn)
        if begun and self._is_large:
            self._waiting.move_to_end(party, last=False)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it came at the same moment
                self._next()
            raise

    def _next(self) -> None:
        """The turn passes to the next party, and there to who has waited longest."""
        while self._waiting:
            party, (begun, others) = self._waiting.popitem(last=False)
            turn = (begun or others).popleft()
            if begun or others:
                self._waiting[party] = begun, others
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
