"""Properties of the whole engine under any traffic: what comes out is what a lone run gives."""

from functools import lru_cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ziphius.engine import passes
from ziphius.engine.complete import complete
from ziphius.engine.engine import Engine
from ziphius.engine.forward import draft_hidden, step_hidden

from .conftest import ask, make_model, naive, small

MODEL = make_model(300)


class Watcher:
    """Stands before the network and checks whom each written block belongs to."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def step(self, model, tokens_N, placement, memory):
        self.check(placement)
        return step_hidden(model, tokens_N, placement, memory)

    def draft(self, model, depth, hidden_ND, tokens_N, placement, memory):
        self.check(placement)
        return draft_hidden(model, depth, hidden_ND, tokens_N, placement, memory)

    def check(self, placement) -> None:
        pool, size = self.engine.scheduler.pool, placement.block_size
        owners = {sequence.row: sequence for sequence in self.engine.scheduler.running}
        slots = placement.slots_N.tolist()
        assert len(set(slots)) == len(slots)
        for row, position, slot in zip(placement.rows_N.tolist(), placement.positions_N.tolist(), slots, strict=True):
            block = owners[row].blocks[position // size]
            assert slot == block * size + position % size
            others = [s for s in owners.values() if block in s.blocks and s.row != row]
            assert pool.holders(block) == 1 + len(others)
            assert not pool.is_registered(block)
            # samples that start in this very step share what the first of them still writes, and have read none of it
            assert all(s.id == owners[row].id and s.generated == owners[row].generated == 1 for s in others)


PROMPTS = [[5, 9, 11], [7], list(range(3, 20)), [*range(3, 17), 60, 61], [33, 3, 99, 4, 17, 8, 9, 10]]


@lru_cache(maxsize=64)
def alone(place: int, samples: int, temperature: float, new: int) -> list[list[int]]:
    request = ask(PROMPTS[place], samples=samples, temperature=temperature, max_new_tokens=new, seed=place)
    return [c.tokens for c in complete(Engine(MODEL, None, small(prefix_cache=False)), [request])[0]]


ACTIONS = st.lists(
    st.one_of(
        st.tuples(
            st.just("add"),
            st.integers(0, len(PROMPTS) - 1),
            st.integers(1, 3),
            st.sampled_from([0.0, 1.0]),
            st.sampled_from([1, 6, 11]),
            st.integers(0, 2),
        ),
        st.tuples(st.just("step"), st.integers(1, 4)),
        st.tuples(st.just("cancel"), st.integers(0, 9)),
        st.tuples(st.just("weights")),
    ),
    max_size=14,
)


@given(
    ACTIONS,
    st.integers(8, 14),
    st.integers(2, 5),
    st.sampled_from([0, 3, 40]),
    st.sampled_from(["off", "off", 1, 3]),
    st.booleans(),
)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_any_traffic_gives_the_tokens_of_a_lone_run(actions, blocks, rows, spare, speculation, caching):
    torch.set_num_threads(1)
    drafts = speculation if isinstance(speculation, int) else 0
    engine = Engine(
        MODEL,
        None,
        small(
            blocks=blocks,
            max_rows=rows,
            max_batch_tokens=rows * (1 + drafts) + spare,
            speculation=speculation,
            prefix_cache=caching,
        ),
    )
    watcher = Watcher(engine)
    asked: dict[int, tuple] = {}
    tokens: dict[tuple[int, int], list[int]] = {}
    ended: dict[tuple[int, int], str] = {}

    def hear(updates):
        for update in updates:
            key = update.id, update.sample
            assert key not in ended
            tokens.setdefault(key, []).extend(update.token_ids)
            if update.finish_reason is not None:
                ended[key] = update.finish_reason

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "step_hidden", watcher.step)
        patch.setattr(passes, "draft_hidden", watcher.draft)
        for action in actions:
            if action[0] == "add":
                _, place, samples, temperature, new, priority = action
                request = ask(
                    PROMPTS[place],
                    samples=samples,
                    temperature=temperature,
                    max_new_tokens=new,
                    seed=place,
                    priority=priority,
                )
                asked[engine.add(request)] = (place, samples, temperature, new)
            elif action[0] == "step":
                for _ in range(action[1]):
                    hear(engine.step())
            elif action[0] == "cancel":
                engine.cancel(action[1])
            else:
                engine.weights_changed()
        for _ in range(2000):
            if not engine.has_work:
                break
            hear(engine.step())
    assert not engine.has_work
    assert engine.stats().blocks_used == 0
    assert (engine.stats().running, engine.stats().waiting) == (0, 0)
    for id, what in asked.items():
        for sample, expected in enumerate(alone(*what)):
            found = tokens[id, sample]
            if ended[id, sample] == "cancelled":
                assert found == expected[: len(found)]
            else:
                assert (ended[id, sample], found) == ("length", expected)


def test_the_traffic_above_preempts_forks_and_hits(monkeypatch):
    """Two prompts and a pool too small for both."""
    engine = Engine(MODEL, None, small(blocks=9, max_rows=4))
    ids = [engine.add(ask(PROMPTS[2], max_new_tokens=11)), engine.add(ask(PROMPTS[3], max_new_tokens=11))]
    tokens: dict[int, list[int]] = {id: [] for id in ids}
    while engine.has_work:
        for update in engine.step():
            tokens[update.id] += update.token_ids
    assert engine.stats().preemptions > 0
    assert [tokens[id] for id in ids] == [alone(2, 1, 0.0, 11)[0], alone(3, 1, 0.0, 11)[0]]


def test_a_higher_priority_goes_first_and_takes_the_room():
    engine = Engine(MODEL, None, small(max_rows=1))
    low, middle = engine.add(ask([5, 9])), engine.add(ask([7]))
    engine.step()
    high = engine.add(ask([33, 3], priority=1))
    ends = []
    tokens: dict[int, list[int]] = {low: [], middle: [], high: []}
    while engine.has_work:
        for update in engine.step():
            tokens[update.id] += update.token_ids
            if update.finish_reason:
                ends.append(update.id)
    assert ends == [high, low, middle]
    assert engine.stats().preemptions == 1
    assert tokens[low] == naive(MODEL, [5, 9], 12).tokens[1:]
