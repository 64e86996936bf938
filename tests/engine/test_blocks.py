import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ziphius.engine.blocks import ROOT, BlockPool


def chain(pool: BlockPool, tokens: list[int]) -> list[bytes]:
    digests: list[bytes] = []
    for start in range(0, len(tokens) // pool.block_size * pool.block_size, pool.block_size):
        digests.append(pool.digest(digests[-1] if digests else ROOT, tokens[start : start + pool.block_size]))
    return digests


def fill(pool: BlockPool, tokens: list[int]) -> list[int]:
    """Blocks of a sequence with these tokens, registered."""
    blocks = []
    for place, digest in enumerate(chain(pool, tokens)):
        blocks.append(pool.allocate())
        pool.register(blocks[-1], digest, tokens[place * pool.block_size : (place + 1) * pool.block_size])
    return blocks


def find(pool: BlockPool, tokens: list[int]) -> list[int]:
    return pool.find(chain(pool, tokens), tokens)


def test_what_was_written_is_found_as_far_as_it_agrees():
    pool = BlockPool(8, 2)
    blocks = fill(pool, [1, 2, 3, 4, 5, 6])
    assert find(pool, [1, 2, 3, 4, 5, 6, 7, 8]) == blocks
    assert find(pool, [1, 2, 3, 4, 9, 6]) == blocks[:2]
    assert find(pool, [3, 4]) == []  # the same tokens behind other ones are another block
    pool.release(blocks)
    assert (pool.used, pool.cached, pool.available) == (0, 3, 8)
    assert find(pool, [1, 2, 3, 4]) == blocks[:2]


def test_a_digest_alone_does_not_make_a_hit():
    pool = BlockPool(4, 2)
    fill(pool, [1, 2])
    assert pool.find(chain(pool, [1, 2]), [8, 9]) == []


def test_the_longest_unused_goes_first_and_of_a_sequence_its_end():
    pool = BlockPool(4, 2)
    old, new = fill(pool, [1, 2, 3, 4]), fill(pool, [5, 6, 7, 8])
    pool.release(old)
    pool.release(new)
    assert [pool.allocate() for _ in range(3)] == [old[1], old[0], new[1]]
    assert find(pool, [1, 2]) == []
    assert find(pool, [5, 6, 7, 8]) == new[:1]


def test_a_second_block_with_the_same_contents_is_not_kept():
    pool = BlockPool(4, 2)
    first, second = fill(pool, [1, 2]), fill(pool, [1, 2])
    pool.release(first + second)
    assert pool.cached == 1
    assert find(pool, [1, 2]) == first


def test_forgetting():
    pool = BlockPool(4, 2)
    held, idle = fill(pool, [1, 2]), fill(pool, [3, 4])
    pool.release(idle)
    pool.forget_all()
    assert (find(pool, [1, 2]), find(pool, [3, 4]), pool.cached, pool.used) == ([], [], 0, 1)
    pool.release(held)
    assert pool.available == 4
    again = fill(pool, [1, 2])
    pool.forget(again)
    assert find(pool, [1, 2]) == []


def test_without_caching_nothing_is_found():
    pool = BlockPool(4, 2, caching=False)
    pool.release(fill(pool, [1, 2]))
    assert (pool.cached, find(pool, [1, 2])) == (0, [])


def test_an_empty_pool_says_so():
    pool = BlockPool(1, 2)
    pool.allocate()
    with pytest.raises(IndexError, match="no block is available"):
        pool.allocate()


@given(st.lists(st.tuples(st.integers(0, 3), st.lists(st.integers(0, 1), max_size=8)), max_size=40))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_blocks_are_conserved(actions):
    """Whatever sequences come, share and go: every block is held, idle or blank, and held as often as sequences say."""
    pool = BlockPool(6, 2)
    sequences: list[list[int]] = []
    for kind, tokens in actions:
        found = find(pool, tokens)
        missing = len(tokens) // 2 - len(found)
        if kind == 0 and sequences:
            pool.release(sequences.pop(0))
        elif kind == 3 and len(tokens) > 7:
            pool.forget_all()
        elif pool.available - sum(map(pool.is_idle, found)) >= missing:
            pool.share(found)
            new = [pool.allocate() for _ in range(missing)]
            for place, digest in enumerate(chain(pool, tokens)):
                if place >= len(found):
                    pool.register(new[place - len(found)], digest, tokens[place * 2 : place * 2 + 2])
            sequences.append(found + new)
        held = [sum(block in sequence for sequence in sequences) for block in range(6)]
        assert [pool.holders(block) for block in range(6)] == held
        assert pool.used == sum(map(bool, held))
        assert pool.available == 6 - pool.used
        assert all(held[block] == 0 for block in range(6) if pool.is_idle(block))
        for sequence in sequences:
            assert len(set(sequence)) == len(sequence)
