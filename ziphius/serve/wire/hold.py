"""What of requests may take the engine seconds, done beside everything else before the engine is given them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from typing import Protocol

from ziphius.engine.request import Request


class Prepares(Protocol):
    """What is needed here of `ziphius.engine.engine.Engine`."""

    def prepared(self, request: Request, abandoned: threading.Event) -> AbstractContextManager[object]: ...


async def hold(engine: Prepares, requests: Sequence[Request]) -> Callable[[], None]:
    """Prepare the requests' constraints; they stay so until the result is called. What is cancelled stops at once.

    In a thread of its own: those of the loop are few, and this one may wait long for its turn. Raises ValueError for a
    constraint that cannot be used.
    """
    bound = [request for request in requests if request.settings.constraint is not None]
    stack, abandoned = ExitStack(), threading.Event()
    if not bound:
        return stack.close

    def enter() -> None:
        for request in bound:
            stack.enter_context(engine.prepared(request, abandoned))

    def leave(entered: asyncio.Future[None]) -> None:
        entered.exception()  # nobody waits for it
        stack.close()

    thread = ThreadPoolExecutor(1, "prepare")
    entering = asyncio.get_running_loop().run_in_executor(thread, enter)
    thread.shutdown(wait=False)
    try:
        await asyncio.shield(entering)
    except BaseException:
        abandoned.set()
        entering.add_done_callback(leave)
        raise
    return stack.close
