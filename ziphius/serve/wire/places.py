"""Room for so many requests and samples, shared by those who ask."""

from __future__ import annotations

from collections import Counter


class Places:
    """Counts what is under way of each owner: requests, or samples.

    All of `most` is one owner's who is alone; where there are k, a k-th part is each one's. What is over a part was
    taken before the others came, and is not taken away. So that it cannot shut them out, who has nothing under way yet
    finds a place beyond `most`, up to as many again.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.taken: Counter[str] = Counter()

    @property
    def total(self) -> int:
        return self.taken.total()

    def has_room(self, owner: str, count: int = 1) -> bool:
        own = self.taken[owner]
        if not own:
            return count <= self.most and self.total + count <= 2 * self.most
        part = max(1, self.most // len(+self.taken))
        return own + count <= part and self.total + count <= self.most

    def take(self, owner: str, count: int = 1) -> None:
        self.taken[owner] += count

    def give_back(self, owner: str, count: int = 1) -> None:
        self.taken[owner] -= count
        if self.taken[owner] <= 0:
            del self.taken[owner]
