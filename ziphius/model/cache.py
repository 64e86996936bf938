"""What attention remembers while decoding."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class StepCache(Protocol):
    """The network's view of a cache during one step; `ziphius.engine` provides the memory behind it.

    N tokens of the step over all sequences, H heads, K key, V value, X entry: as the config's `cache_layout` says.
    """

    def attend(self, layer: int, q_NHK: Tensor, entries_NX: Tensor, scale: float) -> Tensor:
        """Store the step's entries of `layer`, then attend: each to its own sequence up to itself -> [N, H, V]."""
        ...
