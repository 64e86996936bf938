"""The blocks of the latent cache: who holds which, and what the idle ones still know. Imports no torch."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

from ziphius.engine.scores import TokenScores

ROOT = b""  # the digest of no tokens at all


@dataclass(frozen=True, slots=True)
class _Content:
    """What a full block holds: its tokens, and a digest of them and of all that stand before; perhaps their scores."""

    digest: bytes
    tokens: bytes
    scores: TokenScores | None = None


class BlockPool:
    """Numbered blocks with reference counts and a prefix cache.

    A block is held by one sequence that writes it, or, once full and registered, by any number that read it. One that
    nobody holds keeps its contents until the room is needed; the longest unused goes first, of a sequence its end.
    """

    def __init__(self, blocks: int, block_size: int, caching: bool = True) -> None:
        self.total, self.block_size, self.caching = blocks, block_size, caching
        self._holders = [0] * blocks
        self._blank = list(range(blocks - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()  # oldest first
        self._contents: dict[int, _Content] = {}
        self._block_of: dict[bytes, int] = {}

    @property
    def available(self) -> int:
        """Blocks that `allocate` can give."""
        return len(self._blank) + len(self._idle)

    @property
    def used(self) -> int:
        return self.total - self.available

    @property
    def cached(self) -> int:
        """Blocks that nobody holds and whose contents can be found."""
        return len(self._idle)

    def reset(self, spoiled: Collection[int] = ()) -> list[int]:
        """Nobody holds anything, whatever was the case before, and the contents of `spoiled` blocks are forgotten.

        The blocks that were held, or are spoiled, and have no contents to be found.
        """
        self._contents = {
            block: content
            for block, content in self._contents.items()
            if block not in spoiled and self._block_of.get(content.digest) == block
        }
        self._block_of = {content.digest: block for block, content in self._contents.items()}
        recent = [block for block in self._contents if block not in self._idle]
        self._idle = OrderedDict.fromkeys([*(block for block in self._idle if block in self._contents), *recent])
        self._blank = [block for block in range(self.total - 1, -1, -1) if block not in self._contents]
        loose = [block for block in self._blank if self._holders[block] or block in spoiled]
        self._holders = [0] * self.total
        return loose

    def holders(self, block: int) -> int:
        return self._holders[block]

    def is_registered(self, block: int) -> bool:
        return block in self._contents

    def is_idle(self, block: int) -> bool:
        return block in self._idle

    # --- holding ---------------------------------------------------------------------------------------------------

    def allocate(self) -> int:
        """A block to write, held once. Raises IndexError when none is available."""
        if self._blank:
            block = self._blank.pop()
        elif self._idle:
            block, _ = self._idle.popitem(last=False)
            self._forget(block)
        else:
            raise IndexError("no block is available")
        self._holders[block] = 1
        return block

    def share(self, blocks: Sequence[int]) -> None:
        """Hold blocks once more."""
        for block in blocks:
            self._holders[block] += 1
            self._idle.pop(block, None)

    def release(self, blocks: Sequence[int]) -> None:
        """Hold the blocks of one sequence, in its order, once less."""
        for block in reversed(blocks):
            self._holders[block] -= 1
            if self._holders[block] == 0:
                if block in self._contents:
                    self._idle[block] = None
                else:
                    self._blank.append(block)

    # --- the prefix cache --------------------------------------------------------------------------------------------

    def digest(self, before: bytes, tokens: Sequence[int]) -> bytes:
        """The name of a full block with these tokens behind a prefix of digest `before`."""
        return blake2b(before + _pack(tokens), digest_size=16).digest()

    def find(self, digests: Sequence[bytes], tokens: Sequence[int]) -> list[int]:
        """Blocks that hold the first of `tokens`, as many as follow one another without a gap."""
        found: list[int] = []
        size = self.block_size
        for place, digest in enumerate(digests):
            block = self._block_of.get(digest)
            if block is None or self._contents[block].tokens != _pack(tokens[place * size : (place + 1) * size]):
                break
            found.append(block)
        return found

    def register(self, block: int, digest: bytes, tokens: Sequence[int]) -> None:
        """Let a full block be found; it must not be written any more. A second one with the same contents is not."""
        if self.caching and digest not in self._block_of:
            self._contents[block] = _Content(digest, _pack(tokens))
            self._block_of[digest] = block

    def knows(self, digest: bytes, top: int = -1) -> bool:
        """Whether a block of this name can be found, from 0 on with the scores of its tokens and `top` alternatives."""
        block = self._block_of.get(digest)
        scores = None if block is None else self._contents[block].scores
        return block is not None and (top < 0 or (scores is not None and scores.top >= top))

    def keep_scores(self, digest: bytes, scores: TokenScores) -> None:
        """Keep them with the block of this name for as long as it can be found; those with more alternatives stay."""
        block = self._block_of.get(digest)
        if block is None:
            return
        content = self._contents[block]
        if content.scores is None or content.scores.top < scores.top:
            self._contents[block] = replace(content, scores=scores)

    def scores(self, block: int) -> TokenScores | None:
        """What is kept of a block that was found."""
        return self._contents[block].scores

    def forget(self, blocks: Sequence[int]) -> None:
        """Let held blocks no longer be found."""
        for block in blocks:
            if block in self._contents:
                self._forget(block)

    def forget_all(self) -> None:
        """Empty the prefix cache; blocks that are held stay so."""
        self._blank += self._idle
        self._idle.clear()
        self._contents.clear()
        self._block_of.clear()

    def _forget(self, block: int) -> None:
        del self._block_of[self._contents.pop(block).digest]


def _pack(tokens: Sequence[int]) -> bytes:
    return array("q", tokens).tobytes()
