"""Owners share the engine: who asks for much takes nothing from who asks for little. Counted in steps, not seconds."""

from functools import lru_cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ziphius.engine.complete import complete
from ziphius.engine.engine import Engine
from ziphius.engine.reading import Reading
from ziphius.engine.request import Request
from ziphius.engine.settings import EngineSettings
from ziphius.engine.shares import Shares

from .conftest import ask, make_model, small

MODEL = make_model(300)
PROMPTS = [[5, 9, 11], [7], list(range(3, 20)), [*range(3, 17), 60, 61], [33, 3, 99, 4, 17, 8, 9, 10]]


def request_of(owner: str, place: int, samples: int = 1, new: int = 12) -> Request:
    asked = ask(PROMPTS[place], samples=samples, temperature=1.0, seed=place, max_new_tokens=new)
    return Request(asked.prompt, asked.settings, samples=samples, thinking=False, owner=owner)


@lru_cache(maxsize=64)
def alone(place: int, samples: int, new: int) -> list[list[int]]:
    return [c.tokens for c in complete(Engine(MODEL, None, small()), [request_of("", place, samples, new)])[0]]


class Traffic:
    """Steps an engine and keeps what it says, with the step at which each request first said something."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.steps = engine, 0
        self.tokens: dict[tuple[int, int], list[int]] = {}
        self.first: dict[int, int] = {}
        self.last: dict[int, int] = {}

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            self.steps += 1
            for update in self.engine.step():
                self.tokens.setdefault((update.id, update.sample), []).extend(update.token_ids)
                self.first.setdefault(update.id, self.steps)
                self.last[update.id] = self.steps

    def finish(self) -> None:
        while self.engine.has_work:
            assert self.steps < 5000
            self.step()
        stats = self.engine.stats()
        assert (stats.blocks_used, stats.running, stats.waiting, stats.owners) == (0, 0, 0, {})


@pytest.mark.parametrize("speculation", ["off", 2])
@pytest.mark.parametrize("short_of", ["rows", "blocks"])
def test_one_who_asks_for_a_thousand_answers_delays_nobody(speculation, short_of):
    torch.set_num_threads(1)
    room = {"max_rows": 8, "blocks": 128} if short_of == "rows" else {"max_rows": 16, "blocks": 24}
    traffic = Traffic(Engine(MODEL, None, small(speculation=speculation, **room)))
    heavy = [traffic.engine.add(request_of("heavy", place % 5, 128)) for place in range(8)]
    traffic.step(10)
    for place in range(3):
        came = traffic.steps
        light = traffic.engine.add(request_of("light", place, 1, 4))
        while light not in traffic.last or len(traffic.tokens[light, 0]) < 4:
            traffic.step()
            assert traffic.steps < came + 12
        assert traffic.first[light] <= came + 3
        assert traffic.tokens[light, 0] == alone(place, 1, 4)[0]
        assert traffic.engine.stats().owners["heavy"][0] > 0  # who goes on beside it
    for id in heavy[1:]:
        traffic.engine.cancel(id)
    traffic.finish()
    assert [traffic.tokens[heavy[0], sample] for sample in range(128)] == alone(0, 128, 12)


def test_rows_are_shared_evenly_and_those_that_nobody_else_needs_are_free():
    traffic = Traffic(Engine(MODEL, None, small(max_rows=12)))
    for owner, samples in (("a", 40), ("b", 40), ("c", 2)):
        traffic.engine.add(request_of(owner, 0, samples, 40))
    traffic.step(8)
    assert {owner: rows for owner, (rows, _) in traffic.engine.stats().owners.items()} == {"a": 5, "b": 5, "c": 2}


def test_prompts_are_read_in_turns():
    """Two owners with a prompt of many chunks, one who came first, and one with a short prompt."""
    traffic = Traffic(Engine(MODEL, None, small(max_batch_tokens=4, max_rows=4)))
    asked = [Request(list(range(3, 43)), request_of("", 0).settings, owner=owner) for owner in "ab"]
    one, two = map(traffic.engine.add, asked)
    traffic.step(3)
    short = traffic.engine.add(request_of("c", 1))
    traffic.finish()
    assert traffic.first[short] <= 5
    assert abs(traffic.first[one] - traffic.first[two]) <= 3


def test_nobody_wins_by_waiting_or_by_coming_back():
    shares = Shares()
    shares.enter("a")
    shares.charge("a", 1000)
    shares.enter("b")
    assert shares.turn("b")[0] == 1000
    shares.charge("b", 500)
    shares.leave("b")
    shares.enter("b")
    assert shares.turn("b")[0] == 1500  # what it had is not forgotten
    shares.leave("b")
    shares.charge("a", 2000)
    shares.enter("b")
    assert shares.turn("b")[0] == 3000  # and not saved up
    for owner in "ab":
        shares.leave(owner)
    shares.enter("a")
    assert shares.turn("a")[0] == 0


ACTIONS = st.lists(
    st.one_of(
        st.tuples(
            st.just("add"),
            st.sampled_from("abc"),
            st.integers(0, 4),
            st.integers(1, 4),
            st.sampled_from([1, 6, 11]),
        ),
        st.tuples(st.just("step"), st.integers(1, 4)),
        st.tuples(st.just("cancel"), st.integers(0, 9)),
        st.tuples(st.just("restore")),
    ),
    max_size=14,
)


@given(ACTIONS, st.integers(8, 14), st.integers(2, 5), st.sampled_from([0, 3, 40]), st.sampled_from(["off", 1, 3]))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_any_traffic_of_owners_ends_with_the_tokens_of_lone_runs(actions, blocks, rows, spare, speculation):
    torch.set_num_threads(1)
    drafts = speculation if isinstance(speculation, int) else 0
    given_room = {"blocks": blocks, "max_rows": rows, "max_batch_tokens": rows * (1 + drafts) + spare}
    traffic = Traffic(Engine(MODEL, None, small(speculation=speculation, **given_room)))
    asked: dict[int, tuple[int, int, int]] = {}
    cancelled = set()
    for action in actions:
        if action[0] == "add":
            _, owner, place, samples, new = action
            asked[traffic.engine.add(request_of(owner, place, samples, new))] = (place, samples, new)
        elif action[0] == "step":
            traffic.step(action[1])
        elif action[0] == "cancel":
            cancelled.add(action[1])
            traffic.engine.cancel(action[1])
        else:
            traffic.engine.restore()
    traffic.finish()
    for id, what in asked.items():
        for sample, expected in enumerate(alone(*what)):
            found = traffic.tokens.get((id, sample), [])
            assert found == (expected[: len(found)] if id in cancelled else expected)


def test_steps_that_read_are_kept_near_the_wanted_time():
    reading = Reading(EngineSettings(step_seconds=0.1))
    for _ in range(20):
        tokens = reading.tokens()
        reading.note(tokens, 0.05 + tokens * 0.001)  # what a step costs in any case, and what each token adds
    assert 0.08 < 0.05 + reading.tokens() * 0.001 < 0.12
    for _ in range(20):
        reading.note(1 + reading.tokens() // 4, 0.05)  # little to read says nothing about much
    assert reading.tokens() < 80
    for _ in range(20):
        reading.note(reading.tokens(), 0.001)
    assert reading.tokens() == 2048
    for _ in range(20):
        reading.note(2048, 100.0)
    assert reading.tokens() == 64
    assert Reading(EngineSettings()).tokens() is None
