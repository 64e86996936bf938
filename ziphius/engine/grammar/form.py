"""One constraint as the engine sees it: a process that holds it, asked and heard without waiting."""

from __future__ import annotations

import select
import signal
import threading
import time
from collections.abc import Callable, Sequence
from itertools import count
from typing import Protocol
from weakref import WeakMethod, WeakSet

from ziphius.engine.grammar.frames import Ask, Compile, Drop, Reply, pack, split, unpack_reply
from ziphius.engine.grammar.lanes import Abandoned
from ziphius.engine.grammar.library import View, name_of
from ziphius.engine.grammar.nursery import Nursery
from ziphius.engine.settings import Constraint

_CHUNK = 1 << 18
_GLANCE_S = 0.05
_SLACK, _SLACK_S = 10.0, 10.0


class TooLong(ValueError):
    """A constraint that takes longer to prepare than it may."""


class Listener(Protocol):
    """Who asks: `hear` says whether the reply is the one waited for."""

    def hear(self, reply: Reply) -> bool: ...


class Form:
    """A process with one constraint in it, and the answers that follow it. Prepared by one thread; then the engine's.

    `users` are the answers and the requests to come that need it, the last of which went `left_at`; one that is dropped
    because of a failure is none any more. `peak` bytes of memory it has taken, at most. `broken` says why it is of no
    more use.
    """

    def __init__(
        self, nursery: Nursery, constraint: Constraint, vocab_size: int, mib: int, outgrown: Callable[[], None]
    ) -> None:
        self.vocab_size = vocab_size
        self.users: WeakSet[object] = WeakSet()
        self.left_at = 0.0
        self.peak = 0
        self.broken: str | None = None
        self.first = View(False, b"")
        self._nursery, self._outgrown = nursery, WeakMethod(outgrown)  # a store's last user ends all of it at once
        self._name, self._mib = name_of(constraint.kind), mib
        self._seconds = 0.0
        self._numbers = count(1)
        self._asking: dict[int, Listener] = {}
        self._owed = 0  # replies, also those that nobody waits for any more
        self._outbox, self._inbox = bytearray(), bytearray()
        self._ending = threading.Lock()
        self._copy, self.channel = nursery.bear()
        self.channel.setblocking(False)

    def prepare(self, constraint: Constraint, seconds: float, limit: float, abandoned: threading.Event) -> None:
        """Have it read, within `seconds` of processor time, and each later token within `limit`.

        Raises ValueError for what cannot be used (TooLong where it is the time), Abandoned.
        """
        self._seconds = seconds
        self._send(pack(Compile(constraint.kind, constraint.text, seconds, limit)))
        end = time.monotonic() + self.patience
        while not (replies := self._receive()) and self.broken is None:
            if abandoned.is_set():
                self.end("nobody waits for it")
                raise Abandoned
            if time.monotonic() > end:
                self.end(self._over_time())
                raise TooLong(f"the {self._name} cannot be used: {self.broken}")
            poll_all([self], _GLANCE_S)
            self._send(b"")
        if self.broken is not None:
            kind = TooLong if self.broken == self._over_time() else ValueError
            raise kind(f"the {self._name} cannot be used: {self.broken}")
        self._seconds = limit
        self.peak = replies[0].peak
        if replies[0].error is not None:
            self.end(replies[0].error)
            raise ValueError(replies[0].error)
        self.first = replies[0].views[0]

    def number(self) -> int:
        """For one more answer to follow."""
        return next(self._numbers)

    @property
    def patience(self) -> float:
        """Seconds after which a process that has not answered will not: its limit is of processor time, of which it
        may get little on a busy machine."""
        return _SLACK * self._seconds + _SLACK_S

    @property
    def idle(self) -> bool:
        """Whether it has said all that it was asked for."""
        return not self._owed

    @property
    def interest(self) -> int:
        """What to poll its channel for."""
        return select.POLLIN | (select.POLLOUT if self._outbox else 0)

    def ask(self, listener: Listener, question: Ask) -> None:
        self._asking[question.matcher] = listener
        self._owed += 1
        self._send(pack(question))

    def drop(self, number: int) -> None:
        self._asking.pop(number, None)
        self._send(pack(Drop(number)))

    def exchange(self) -> None:
        """Send and hear what can be at once."""
        self._send(b"")
        for reply in self._receive():
            self._owed -= 1
            listener = self._asking.get(reply.matcher)
            if listener is not None and listener.hear(reply):
                del self._asking[reply.matcher]
            if reply.peak > self.peak:
                self.peak = reply.peak
                if (outgrown := self._outgrown()) is not None:
                    outgrown()

    def end(self, why: str) -> None:
        """Kill the process; who still needs it is told why. Any thread may; the first reason stands."""
        with self._ending:
            if self.broken is None:
                self._nursery.bury(self._copy)
                self.broken = why

    def close(self) -> None:
        """Let go of it, which nobody uses."""
        self.end("nobody uses it")
        self.channel.close()

    def _send(self, data: bytes) -> None:
        self._outbox += data
        while self._outbox and self.broken is None:
            try:
                del self._outbox[: self.channel.send(self._outbox)]
            except BlockingIOError:
                return
            except OSError:
                self._fail()

    def _receive(self) -> list[Reply]:
        while self.broken is None:
            try:
                data = self.channel.recv(_CHUNK)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            if not data:
                self._fail()
                break
            self._inbox += data
            if len(data) < _CHUNK:
                break
        try:
            return [unpack_reply(body) for body in split(self._inbox)]
        except ValueError:
            self.end("its process gave a reply that is none")
            return []

    def _fail(self) -> None:
        """It has ended by itself."""
        with self._ending:
            if self.broken is None:
                code = self._nursery.bury(self._copy)
                self.broken = self._over_time() if code == -signal.SIGPROF else self._over_memory()

    def _over_time(self) -> str:
        return f"it takes more than {self._seconds:g} s of processor time; make it shorter"

    def _over_memory(self) -> str:
        return f"it takes more than {self._mib} MiB of memory, or breaks the library that reads it; make it shorter"


def poll_all(forms: Sequence[Form], seconds: float) -> None:
    """Until one of them says something, at most so long."""
    found = select.poll()
    for form in forms:
        found.register(form.channel, form.interest)
    found.poll(seconds * 1000)
