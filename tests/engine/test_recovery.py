"""Steps that fail: only the sample whose fault it is ends with an error."""

from functools import lru_cache

import pytest
import torch
from hypothesis import example, given
from hypothesis import settings as bounds
from hypothesis import strategies as st
from pydantic import ValidationError

from ziphius.engine import passes, recovery
from ziphius.engine.complete import complete
from ziphius.engine.engine import Engine
from ziphius.engine.recovery import Recovery
from ziphius.engine.request import Request
from ziphius.engine.sampling import Sampler
from ziphius.engine.sequence import Sequence
from ziphius.engine.settings import SamplingSettings

from .conftest import ask, make_model, small

MODEL = make_model(300)
PROMPTS = [[5, 9, 11], [7], list(range(3, 20)), [*range(3, 17), 60, 61], [33, 3, 99, 4, 17, 8, 9, 10]]
CULPRIT = [41, 42, 43]


class Panic(BaseException):
    """What a library in Rust throws is no `Exception`."""


@lru_cache(maxsize=32)
def alone(place: int, samples: int) -> list[list[int]]:
    return [c.tokens for c in complete(Engine(MODEL, None, small()), [request_of(place, samples)])[0]]


def request_of(place: int, samples: int) -> Request:
    return ask(PROMPTS[place], samples=samples, temperature=1.0, seed=place, presence_penalty=0.5 * (place % 2))


def drive(engine: Recovery, found: dict, ends: dict) -> None:
    for _ in range(3000):
        if not engine.has_work:
            return
        for update in engine.step():
            key = update.id, update.sample
            assert key not in ends
            found.setdefault(key, []).extend(update.token_ids)
            if update.finish_reason is not None:
                ends[key] = update.finish_reason, update.error
    raise AssertionError("the engine does not come to an end")


def is_the_culprits(sequence: Sequence) -> bool:
    return list(sequence.request.prompt) == CULPRIT


def failing_seat(self, sequence):
    if is_the_culprits(sequence):
        raise OverflowError("too large")
    return SEAT(self, sequence)


def failing_append(self, token, logprob):
    if is_the_culprits(self) and self.generated == 4:
        raise Panic("the library fell over")
    return APPEND(self, token, logprob)


def failing_network(model, tokens_N, placement, memory):
    if 42 in tokens_N:
        raise MemoryError("no room")
    return STEP(model, tokens_N, placement, memory)


SEAT, APPEND, STEP = Sampler.seat, Sequence.append, passes.step_hidden
FAULTS = {
    "its settings": (Sampler, "seat", failing_seat),
    "its fifth token": (Sequence, "append", failing_append),
    "the network with its tokens": (passes, "step_hidden", failing_network),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("speculation", ["off", 2])
def test_one_that_fails_again_and_again_hurts_no_other(monkeypatch, fault, speculation):
    torch.set_num_threads(1)
    owner, name, failing = FAULTS[fault]
    engine = Recovery(Engine(MODEL, None, small(max_rows=6, blocks=40, speculation=speculation)), 2)
    monkeypatch.setattr(owner, name, failing)
    asked = [(place, 1 + place % 3) for place in range(5)]
    ids = {engine.add(request_of(*each)): each for each in asked[:3]}
    found: dict = {}
    ends: dict = {}
    culprit = engine.add(ask(CULPRIT))
    ids |= {engine.add(request_of(*each)): each for each in asked[3:]}
    drive(engine, found, ends)
    reason, error = ends[culprit, 0]
    assert reason == "error"
    assert "the engine failed at this answer: " in error
    for id, (place, samples) in ids.items():
        assert [found[id, sample] for sample in range(samples)] == alone(place, samples)
    stats = engine.stats()
    assert (stats.blocks_used, stats.running, stats.waiting, engine.broken) == (0, 0, 0, None)


def test_what_fails_once_hurts_nobody(monkeypatch):
    engine = Recovery(Engine(MODEL, None, small()), 2)
    ids = {engine.add(request_of(place, 2)): place for place in range(5)}
    found: dict = {}
    ends: dict = {}
    for error in (OSError("once"), Panic("and once more"), MemoryError()):
        for update in [u for _ in range(3) for u in engine.step()]:
            found.setdefault((update.id, update.sample), []).extend(update.token_ids)
        with monkeypatch.context() as patch:
            patch.setattr(passes, "step_hidden", lambda *_, error=error: (_ for _ in ()).throw(error))
            assert engine.step() == []
    drive(engine, found, ends)
    assert {reason for reason, _ in ends.values()} == {"length"}
    for id, place in ids.items():
        assert [found[id, sample] for sample in range(2)] == alone(place, 2)


def test_who_is_met_by_failures_of_others_twice_while_alone_is_not_blamed(monkeypatch):
    engine = Recovery(Engine(MODEL, None, small()), 2)
    id = engine.add(request_of(0, 1))
    found: dict = {}
    ends: dict = {}
    with monkeypatch.context() as patch:
        patch.setattr(passes, "step_hidden", lambda *_: 1 / 0)
        assert [engine.step() for _ in range(3)] == [[], [], []]
    drive(engine, found, ends)
    assert ends == {(id, 0): ("length", None)}
    assert found[id, 0] == alone(0, 1)[0]


def test_an_engine_that_serves_nothing_is_broken_until_it_does(monkeypatch):
    monkeypatch.setattr(recovery, "_LONGEST_REST", 0.001)
    engine = Recovery(Engine(MODEL, None, small()), 2)
    waiting = [engine.add(request_of(place, 1)) for place in range(2)]
    ends = []
    with monkeypatch.context() as patch:
        patch.setattr(passes, "step_hidden", lambda *_: 1 / 0)
        for _ in range(40):
            ends += [(update.id, update.error) for update in engine.step()]
        assert sorted(ends) == [(id, "the engine failed: division by zero") for id in waiting]
        assert engine.broken == "the engine failed: division by zero"
        with pytest.raises(RuntimeError, match="division by zero"):
            engine.add(request_of(0, 1))
    for _ in range(5):
        engine.step()
    assert engine.broken is None
    assert not engine.has_work
    found: dict = {}
    id = engine.add(request_of(2, 1))
    drive(engine, found, {})
    assert found[id, 0] == alone(2, 1)[0]


def test_keyboard_interrupts_go_through(monkeypatch):
    engine = Recovery(Engine(MODEL, None, small()), 2)
    id = engine.add(request_of(0, 1))
    with monkeypatch.context() as patch:
        patch.setattr(passes, "step_hidden", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            engine.step()
    found: dict = {}
    drive(engine, found, {})
    assert found[id, 0] == alone(0, 1)[0]


HUGE = st.one_of(st.integers(-3, 3), st.sampled_from([2**31 - 1, 2**31, 2**63 - 1, 2**63, 2**64, 10**30, -(2**63)]))
EXTREME = st.one_of(
    st.floats(), st.sampled_from([0.0, 1.0, 1e-5, 1e-300, 5e-324, 1e-38, 2.0, 10.0, 100.0, 1e6, -1e6, 1e308])
)
FIELDS = {
    "temperature": EXTREME,
    "top_p": EXTREME,
    "top_k": HUGE,
    "min_p": EXTREME,
    "presence_penalty": EXTREME,
    "frequency_penalty": EXTREME,
    "repetition_penalty": EXTREME,
    "logit_bias": st.dictionaries(st.one_of(HUGE, st.integers(0, 400)), EXTREME, max_size=4),
    "seed": HUGE,
    "stop_token_ids": st.lists(HUGE, max_size=3),
    "min_tokens": HUGE,
    "logprobs": st.one_of(HUGE, st.just(64)),
    "max_new_tokens": st.one_of(st.integers(1, 6), HUGE),
}


ONE = st.sampled_from(sorted(FIELDS)).flatmap(lambda name: st.fixed_dictionaries({name: FIELDS[name]}))


@given(ONE, ONE, st.one_of(st.integers(1, 3), HUGE), HUGE)
@example({"top_k": 2**31 - 1}, {"temperature": 1.0}, 2, 2**63)
@example({"repetition_penalty": 1e-3}, {"logit_bias": {5: 1e6, 6: -1e6}}, 1, 0)
@example({"top_p": 5e-324}, {"min_p": 1.0}, 1, -(2**64))
@example({"seed": 2**64 - 1}, {"seed": -(2**63)}, 1, 0)
@bounds(max_examples=300, deadline=None, derandomize=True)
def test_any_numbers_give_tokens_or_a_refusal(one, other, samples, priority):
    torch.set_num_threads(1)
    engine = Engine(MODEL, None, small())
    given_settings = {"max_new_tokens": 4, "ignore_eos": True} | one | other
    try:
        request = Request([5, 9], SamplingSettings(**given_settings), samples=samples, priority=priority)
    except ValidationError:
        return
    try:
        engine.add(request)
    except ValueError:
        return
    ends = []
    while engine.has_work:
        ends += [update.finish_reason for update in engine.step() if update.finish_reason is not None]
    assert set(ends) <= {"length", "stop"}
    assert len(ends) == samples
