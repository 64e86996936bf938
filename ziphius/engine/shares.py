"""What each owner of requests has had of the engine, and who is next. Imports no torch."""

from __future__ import annotations

from collections import Counter


class Shares:
    """Tokens that went through the network for each owner, as the clock of fair queueing.

    Who has had least is served first. An owner that comes begins where the least of those present stands, or where it
    stood itself when it went, whichever is later: nobody saves up a share by staying away, or wins one by coming back.
    Compare start-time fair queueing (Goyal, Vin, Cheng 1996) and its counting of tokens (arXiv 2401.00588).
    """

    def __init__(self) -> None:
        self.samples: Counter[str] = Counter()  # of each owner that is present, those that wait included
        self.rows: Counter[str] = Counter()  # of them, those that run
        self._had: dict[str, int] = {}

    def enter(self, owner: str) -> None:
        """One of its samples has come."""
        if owner not in self.samples:
            least = min((self._had[other] for other in self.samples), default=0)
            self._had[owner] = max(least, self._had.get(owner, 0))
        self.samples[owner] += 1

    def leave(self, owner: str) -> None:
        """One of its samples has gone."""
        _less(self.samples, owner)
        if owner not in self.samples:  # of those who are gone, only what sets them back need be known
            least = min((self._had[other] for other in self.samples), default=None)
            self._had = {name: had for name, had in self._had.items() if least is not None and had >= least}

    def take_row(self, owner: str) -> None:
        self.rows[owner] += 1

    def give_row(self, owner: str) -> None:
        _less(self.rows, owner)

    def charge(self, owner: str, tokens: int) -> None:
        """So many tokens go through the network for it."""
        self._had[owner] += tokens

    def charge_rows(self) -> None:
        """A token for each sample that runs."""
        for owner, rows in self.rows.items():
            self._had[owner] += rows

    def turn(self, owner: str) -> tuple[int, int]:
        """The least of these is next."""
        return self._had[owner], self.rows[owner]

    def uneven(self) -> bool:
        """Whether an owner that waits runs fewer samples than another, and would not with one more run more."""
        if len(self.samples) < 2:
            return False
        fewest = min((self.rows[o] for o, count in self.samples.items() if count > self.rows[o]), default=None)
        return fewest is not None and max(self.rows.values(), default=0) > fewest + 1

    def clear(self) -> None:
        """Nobody is here; what they had stays."""
        self.samples.clear()
        self.rows.clear()


def _less(counts: Counter[str], owner: str) -> None:
    counts[owner] -= 1
    if not counts[owner]:
        del counts[owner]
