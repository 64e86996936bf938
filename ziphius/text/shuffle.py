"""Documents in a random order, without holding more of them than a buffer."""

import random
from typing import Any

from ziphius.text.corpora import Source, load_rng, save_rng

DOCUMENTS = 10_000  # what the buffer of a file corpus holds at most,
LENGTH = 1 << 22  # and in characters: as much goes into each saved state


class Shuffled:
    """A source seen through a buffer, each draw taking one of its documents at random.

    The buffer is emptied before the next pass over the source begins, so each pass gives every document once, and a
    source that fits into the buffer is shuffled through and through. The buffer's documents are part of the state.
    """

    def __init__(self, source: Source, seed: int, size: int = DOCUMENTS, length: int = LENGTH) -> None:
        """
        Args:
            size: documents that the buffer holds, at most.
            length: characters that it holds, at most, but for the one document that fills it.

        Raises:
            ValueError: a size or length below 1.
        """
        if min(size, length) < 1:
            raise ValueError(f"a shuffle buffer of {min(size, length)} holds no document: give 1 or more")
        self.source, self.size, self.length = source, size, length
        self.epochs = source.epochs
        self._rng = random.Random(seed)
        self._buffer: list[str] = []
        self._held = 0  # characters in it,
        self._taken = 0  # and that went in since this pass began
        self._next: str | None = None  # the first document of the pass that follows

    @property
    def passes(self) -> float:
        """How many times the source has been drawn: what was read, less what waits in the buffer."""
        read = self.source.passes - self.epochs if self._next is None else 1.0
        return self.epochs + read * (self._taken - self._held) / max(1, self._taken)

    def next_document(self) -> str:
        if self._next is not None and not self._buffer:
            self._begin(self._next)
        while self._next is None and len(self._buffer) < self.size and self._held < self.length:
            document = self.source.next_document()
            if self.source.epochs == self.epochs:
                self._put(document)
            elif self._buffer:
                self._next = document
            else:
                self._begin(document)
        index = self._rng.randrange(len(self._buffer))
        self._buffer[index], self._buffer[-1] = self._buffer[-1], self._buffer[index]
        document = self._buffer.pop()
        self._held -= len(document)
        return document

    def _begin(self, document: str) -> None:
        """A new pass, of which `document` is the first."""
        self.epochs, self._taken, self._next = self.source.epochs, 0, None
        self._put(document)

    def _put(self, document: str) -> None:
        self._buffer.append(document)
        self._held += len(document)
        self._taken += len(document)

    def unchanged(self, state: dict[str, Any]) -> bool:
        return self.source.unchanged(state["source"])

    def state_dict(self) -> dict[str, Any]:
        return {
            "source": self.source.state_dict(),
            "rng": save_rng(self._rng),
            "buffer": list(self._buffer),
            "next": self._next,
            "taken": self._taken,
            "epochs": self.epochs,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.source.load_state_dict(state["source"])
        load_rng(self._rng, state["rng"])
        self._buffer, self._next = list(state["buffer"]), state["next"]
        self._held, self._taken = sum(map(len, self._buffer)), state["taken"]
        self.epochs = state["epochs"]
