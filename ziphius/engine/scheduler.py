"""Who takes part in a step: running answers first, then prompts in chunks. Imports no torch.

R rows, M blocks of a row's table.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from ziphius.engine.blocks import BlockPool
from ziphius.engine.scores import MOST_KEPT
from ziphius.engine.sequence import Sequence
from ziphius.engine.shares import Shares
from ziphius.engine.yielding import has_little, most_blocks, who_yields


@dataclass(slots=True)
class Piece:
    """`count` tokens of a sequence (its drafts behind its tokens) that a step reads, from position `start` on."""

    sequence: Sequence
    start: int
    count: int


class Scheduler:
    """Waiting and running sequences, both in order of rank, and the blocks between them.

    Who needs a block takes it from the owner with the most, whose lowest sample then waits and is read anew later;
    where that is itself, it rests for a step. With one owner, the highest always goes on, so all end. Orders of
    magnitude: arXiv 2309.06180 (paging), 2308.16369 (prompts in chunks beside answers).

    Between owners the tokens of prompts, the rows and the blocks are shared: the prompts of the owner who has had least
    come first, and an owner who has fewer rows, or not half the blocks, of another takes them from that one's lowest.
    """

    def __init__(self, pool: BlockPool, max_rows: int, max_batch_tokens: int) -> None:
        self.pool, self.max_batch_tokens = pool, max_batch_tokens
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.tables_RM = np.zeros((max_rows, 4), np.int32)
        self.seated: list[Sequence] = []  # those who have got a row since their user last looked
        self.subject: Sequence | None = None  # whose own affair is being seen to: what fails then is theirs
        self.shares = Shares()
        self.preemptions = 0
        self.hit_tokens = 0
        self.miss_tokens = 0
        self._rows = list(range(max_rows - 1, -1, -1))
        self._reading: set[int] = set()  # requests whose prompt is being read: their other samples wait for it
        self._aside: list[Sequence] = []
        self._only: Collection[Sequence] | None = None

    def add(self, sequence: Sequence) -> None:
        self.shares.enter(sequence.owner)
        self._queue(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Take out a sequence that has ended; its blocks and its row are free."""
        if sequence.row >= 0:
            self._vacate(sequence)
            self.running.remove(sequence)
        else:
            (self._aside if sequence in self._aside else self.waiting).remove(sequence)
        self.shares.leave(sequence.owner)

    def clear(self, spoiled: Collection[int] = ()) -> list[int]:
        """Nobody is here, whatever was the case before; the blocks that `BlockPool.reset` tells of."""
        self.waiting, self.running, self.seated, self._aside, self._only = [], [], [], [], None
        self._rows = list(range(len(self.tables_RM) - 1, -1, -1))
        self._reading = set()
        self.subject = None
        self.shares.clear()
        return self.pool.reset(spoiled)

    def take_part(self, only: Collection[Sequence] | None) -> None:
        """Let these alone take part, and all others stand aside; None: let all."""
        self._only = only
        for sequence in self.running[:]:
            if only is not None and sequence not in only:
                self.preempt(sequence)
        others = self.waiting + self._aside
        self.waiting, self._aside = [], []
        for sequence in others:
            self._queue(sequence)

    def schedule(self, lookahead: int = 0, prompt_tokens: int | None = None) -> list[Piece]:
        """The pieces of the next step, with blocks for them and for `lookahead` tokens beyond an answer's end; at most
        `prompt_tokens` of them are of prompts."""
        plan: dict[Sequence, Piece] = {}
        budget = self.max_batch_tokens
        readers = []
        for sequence in list(self.running):
            if sequence.row < 0 or sequence.late:
                continue  # preempted just now, or sits the step out
            self.subject = sequence
            if not sequence.decodes:
                readers.append(sequence)
                continue
            count = 1 + len(sequence.drafts)
            if self._grow(sequence, sequence.computed + count + lookahead, plan):
                plan[sequence] = Piece(sequence, sequence.computed, count)
                self.shares.charge(sequence.owner, count)
        budget -= sum(piece.count for piece in plan.values())
        if prompt_tokens is not None:
            budget = min(budget, prompt_tokens)
        self._read_prompts(readers, budget, lookahead, plan)
        self.subject = None
        return list(plan.values())

    def is_closed(self, ends: bool) -> bool:
        """Whether nobody can join those who run; `ends` says that someone leaves them."""
        if not self.waiting:
            return True
        if ends or self._rows or self.shares.uneven():
            return False
        return self.waiting[0].request.priority <= self.running[-1].request.priority

    def grow(self, sequences: list[Sequence]) -> bool:
        """Give each a block more, if there is one for all of them without taking any from others."""
        if self.pool.available < len(sequences):
            return False
        for sequence in sequences:
            sequence.blocks.append(self.pool.allocate())
            self._write_table(sequence, len(sequence.blocks) - 1)
        return True

    def fork(self, leader: Sequence) -> list[tuple[Sequence, int, int]]:
        """Start the waiting samples of a request whose prompt has just been read, as many as there is room for.

        Each with the block to copy and the one to copy it to: the one that holds the prompt's last token is its own.
        """
        self._reading.discard(leader.id)
        shared = (leader.prompt_length - 1) // self.pool.block_size
        started = []
        for sibling in [s for s in self.waiting if s.id == leader.id and s.cached_tokens < 0]:
            if not self._rows or not self.pool.available:
                break
            self.waiting.remove(sibling)
            self.pool.share(leader.blocks[:shared])
            sibling.blocks = [*leader.blocks[:shared], self.pool.allocate()]
            sibling.computed = sibling.prompt_length
            sibling.digests, sibling.registered = list(leader.digests), shared
            sibling.cached_tokens = leader.cached_tokens
            self._seat(sibling)
            started.append((sibling, leader.blocks[shared], sibling.blocks[shared]))
        return started

    def preempt(self, sequence: Sequence) -> None:
        """Send a running sequence back to wait; what it has written of its answer stays."""
        self._vacate(sequence)
        self.running.remove(sequence)
        sequence.computed = sequence.registered = 0
        sequence.drafts = []
        self._queue(sequence)
        self.preemptions += 1

    # --- turns -------------------------------------------------------------------------------------------------------

    def _queue(self, sequence: Sequence) -> None:
        takes_part = self._only is None or sequence in self._only
        insort(self.waiting if takes_part else self._aside, sequence, key=_rank)

    def _turn(self, sequence: Sequence) -> tuple[int, tuple[int, int], tuple[int, int, int]]:
        """The least of these is next: priority first, then the owner who has had least, then arrival."""
        return -sequence.request.priority, self.shares.turn(sequence.owner), sequence.rank

    # --- room --------------------------------------------------------------------------------------------------------

    def _read(self, sequence: Sequence, budget: int, lookahead: int, plan: dict[Sequence, Piece]) -> int:
        """Plan the next chunk of a prompt; its number of tokens."""
        left = len(sequence.tokens) - sequence.computed
        count = min(left, budget)
        end = sequence.computed + count + (lookahead if count == left else 0)
        if count <= 0 or not self._grow(sequence, end, plan):
            return 0
        plan[sequence] = Piece(sequence, sequence.computed, count)
        self.shares.charge(sequence.owner, count)
        return count

    def _read_prompts(self, readers: list[Sequence], budget: int, lookahead: int, plan: dict[Sequence, Piece]) -> None:
        """Go on with prompts and let in who waits, while the step has tokens left or somebody has to yield. Who finds
        no room keeps what there is from those behind it, but not from an owner who has little."""
        queues: dict[str, deque[Sequence]] = {}
        for sequence in readers if self.is_closed(False) else readers + self.waiting:
            queues.setdefault(sequence.owner, deque()).append(sequence)
        crowded = False
        while queues and (budget > 0 or self.shares.uneven()):
            owner = min(queues, key=lambda owner: self._turn(queues[owner][0]))
            sequence = self.subject = queues[owner].popleft()
            if not queues[owner]:
                del queues[owner]
            if sequence in readers:
                if sequence.row >= 0:
                    budget -= self._read(sequence, budget, lookahead, plan)
                continue
            if sequence.cached_tokens < 0 and sequence.id in self._reading:
                continue
            if self._is_being_read(sequence, plan):
                continue
            if not crowded or has_little(self.running, sequence, self._needed(sequence)):
                gone = self._make_room(sequence)
                budget += sum(plan.pop(victim).count for victim in gone if victim in plan)
                found = self._find(sequence)
                if self._fits(sequence, found):
                    self._enter(sequence, found)
                    budget -= self._read(sequence, budget, lookahead, plan)
                    continue
                crowded = crowded or not self._has_blocks(sequence, found)
            queues.pop(owner, None)

    def _make_room(self, sequence: Sequence) -> list[Sequence]:
        """Who had to yield to one that waits."""
        gone: list[Sequence] = []
        while not self._fits(sequence, found := self._find(sequence)):
            lacks_blocks = not self._has_blocks(sequence, found)
            victim = who_yields(self.running, sequence, self._needed(sequence), lacks_blocks)
            if victim is None:
                break
            self.preempt(victim)
            gone.append(victim)
        return gone

    def _find(self, sequence: Sequence) -> list[int]:
        """Cached blocks of its tokens, but for the last token: the network must read at least that."""
        if not self.pool.caching:
            return []
        size = self.pool.block_size
        usable = (len(sequence.tokens) - 1) // size
        found = self.pool.find(sequence.full_digests(self.pool)[:usable], sequence.tokens)
        if sequence.scores is not None:
            for place, block in enumerate(found):
                if (kept := self.pool.scores(block)) is not None and kept.top >= sequence.scores.top:
                    sequence.scores.put(place * size, kept)
            missing = sequence.scores.first_missing
            if missing is not None:  # a token is scored by reading the one before it
                found = found[: (missing - 1) // size]
        return found

    def _is_being_read(self, sequence: Sequence, plan: dict[Sequence, Piece]) -> bool:
        """Whether one of its owner's that goes before it reads, in this very step, a block that both begin with.

        It then waits, for a step later it finds that block in the cache. It waits only for who makes progress, so that
        nobody waits for ever, and for nobody else's, so that nobody waits at another's pace.
        """
        size = self.pool.block_size
        usable = (len(sequence.tokens) - 1) // size
        if not self.pool.caching or not usable:
            return False
        digests = sequence.full_digests(self.pool)
        for reader, piece in plan.items():
            place = piece.start // size
            if reader.decodes or reader.owner != sequence.owner or reader.rank > sequence.rank or place >= usable:
                continue
            read = reader.full_digests(self.pool)
            if len(read) <= place or read[place] != digests[place]:
                continue
            wanted = _wanted(sequence)
            if not self.pool.knows(digests[place], wanted) and wanted <= min(_wanted(reader), MOST_KEPT):
                return True
        return False

    def _fits(self, sequence: Sequence, found: list[int]) -> bool:
        """Whether there is a row, and room for all that it has to read."""
        return bool(self._rows) and self._has_blocks(sequence, found)

    def _has_blocks(self, sequence: Sequence, found: list[int]) -> bool:
        idle = sum(map(self.pool.is_idle, found))
        return self.pool.available - idle >= self._needed(sequence) - len(found)

    def _needed(self, sequence: Sequence) -> int:
        return len(sequence.tokens) // self.pool.block_size + 1

    def _enter(self, sequence: Sequence, found: list[int]) -> None:
        self.waiting.remove(sequence)
        self.pool.share(found)
        sequence.blocks = found
        sequence.computed = len(found) * self.pool.block_size
        sequence.registered = len(found)
        if sequence.cached_tokens < 0:
            sequence.cached_tokens = sequence.computed
            self.hit_tokens += sequence.computed
            self.miss_tokens += sequence.prompt_length - sequence.computed
            if sequence.request.samples > 1:
                self._reading.add(sequence.id)
        self._seat(sequence)

    def _seat(self, sequence: Sequence) -> None:
        sequence.row = self._rows.pop()
        self.shares.take_row(sequence.owner)
        self.seated.append(sequence)
        insort(self.running, sequence, key=_rank)
        self._write_table(sequence, 0)

    def _vacate(self, sequence: Sequence) -> None:
        self._rows.append(sequence.row)
        self.shares.give_row(sequence.owner)
        self.pool.release(sequence.blocks)
        self._reading.discard(sequence.id)
        sequence.row, sequence.blocks = -1, []

    def _grow(self, sequence: Sequence, length: int, plan: dict[Sequence, Piece]) -> bool:
        """Give it blocks for `length` tokens, if need be those of others."""
        length = min(length, sequence.limit)
        held = len(sequence.blocks)
        missing = -(-length // self.pool.block_size) - held
        if missing <= 0:
            return True
        while self.pool.available < missing:
            victim, _ = most_blocks(self.running)
            if victim is sequence:
                return False
            plan.pop(victim, None)
            self.preempt(victim)
        sequence.blocks += [self.pool.allocate() for _ in range(missing)]
        self._write_table(sequence, held)
        return True

    def _write_table(self, sequence: Sequence, start: int) -> None:
        width = self.tables_RM.shape[1]
        if len(sequence.blocks) > width:
            wider = max(2 * width, len(sequence.blocks))
            self.tables_RM = np.pad(self.tables_RM, ((0, 0), (0, wider - width)))
        self.tables_RM[sequence.row, start : len(sequence.blocks)] = sequence.blocks[start:]


def _wanted(sequence: Sequence) -> int:
    """How many alternatives a prompt's tokens are still to be scored with; −1 where they are not."""
    return sequence.scores.top if sequence.scores is not None and sequence.wants_scores else -1


def _rank(sequence: Sequence) -> tuple[int, int, int]:
    return sequence.rank
