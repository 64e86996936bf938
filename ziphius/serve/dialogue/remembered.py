"""What is worth keeping between requests, in bounded memory. Imports no torch."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from threading import Lock
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Remembered(Generic[K, V]):
    """Values by key, each with a weight of its own; beyond `capacity` in all, those unused for longest are dropped.

    Prompts are made in threads, so any may call.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = self._room = capacity
        self._kept: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._lock = Lock()

    def keep(self, key: K, value: V, weight: int) -> None:
        """`weight` counts the entry itself, too: one of nothing takes memory."""
        if weight > self.capacity:
            return
        with self._lock:
            if key in self._kept:
                self._room += self._kept.pop(key)[1]
            self._kept[key] = value, weight
            self._room -= weight
            while self._room < 0:
                self._room += self._kept.popitem(last=False)[1][1]

    def find(self, key: K) -> V | None:
        with self._lock:
            if key not in self._kept:
                return None
            self._kept.move_to_end(key)
            return self._kept[key][0]
