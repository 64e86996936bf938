"""Who has to yield: of the samples that run, in order of rank, one whose row or blocks another needs more. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from collections.abc import Sequence as Seq

from ziphius.engine.sequence import Sequence


def most_blocks(running: Seq[Sequence]) -> tuple[Sequence, Counter[str]]:
    """Of those of the lowest priority: the lowest of the owner with most blocks, and how many each owner has."""
    return _most(running, lambda sequence: len(sequence.blocks))


def has_little(running: Seq[Sequence], sequence: Sequence, needed: int) -> bool:
    """Whether its owner, once it had the `needed` blocks too, would hold no more than half those of another."""
    if not running:
        return False
    first, held = most_blocks(running)
    return held[first.owner] >= 2 * (held[sequence.owner] + needed)


def who_yields(running: Seq[Sequence], sequence: Sequence, needed: int, lacks_blocks: bool) -> Sequence | None:
    """To one that waits for `needed` blocks, or for a row: the lowest of lower priority, or of an owner with more than
    its own."""
    lowest, priority = running[-1] if running else None, sequence.request.priority
    if lowest is None or lowest.request.priority < priority:
        return lowest
    if lowest.request.priority > priority:
        return None
    if lacks_blocks:
        return most_blocks(running)[0] if has_little(running, sequence, needed) else None
    victim, rows = _most(running, lambda _: 1)
    return victim if rows[victim.owner] > rows[sequence.owner] + 1 else None


def _most(running: Seq[Sequence], size: Callable[[Sequence], int]) -> tuple[Sequence, Counter[str]]:
    priority = running[-1].request.priority
    lowest = [s for s in running if s.request.priority == priority]
    held: Counter[str] = Counter()
    for sequence in lowest:
        held[sequence.owner] += size(sequence)
    most = max(held.values())
    return next(s for s in reversed(lowest) if held[s.owner] == most), held
