"""A few at once, and owners take turns."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

_GLANCE_S = 0.05  # how often who waits looks whether they still need to


class Abandoned(Exception):
    """Whoever asked has left."""


class Lane:
    """Lets `size` through at once. Next is who has fewest within, then who was let in longest ago, then who came first:
    however many one owner brings, another waits for one of theirs at most."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._within: Counter[str] = Counter()
        self._waiting: list[tuple[int, str]] = []
        self._let_in: dict[str, int] = {}
        self._numbers = count(1)
        self._change = threading.Condition()

    @contextmanager
    def turn(self, owner: str, abandoned: threading.Event) -> Iterator[None]:
        """Wait for a place, and hold it. Raises Abandoned once that is set."""
        with self._change:
            place = (next(self._numbers), owner)
            self._waiting.append(place)
            try:
                while not self._is_next(place):
                    self._change.wait(_GLANCE_S)
                    if abandoned.is_set():
                        raise Abandoned
                self._within[owner] += 1
                self._let_in[owner] = place[0]
            finally:
                self._waiting.remove(place)
                self._change.notify_all()
        try:
            yield
        finally:
            with self._change:
                self._within[owner] -= 1
                if not self._within[owner]:
                    del self._within[owner]
                    if all(owner != other for _, other in self._waiting):
                        self._let_in.pop(owner, None)
                self._change.notify_all()

    def _is_next(self, place: tuple[int, str]) -> bool:
        return self._within.total() < self._size and place == min(self._waiting, key=self._rank)

    def _rank(self, place: tuple[int, str]) -> tuple[int, int, int]:
        number, owner = place
        return self._within[owner], self._let_in.get(owner, 0), number
