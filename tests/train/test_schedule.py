import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ziphius.train.schedule import Schedule, batch_rows

T = 1480  # steps of 10B tokens: V3's 14.8T
PLAIN = {"warmup_steps": 0}


def test_v3_holds_its_published_rates_at_its_published_points():
    """V3 §4.2: 2.2e-4 until 10T tokens, a cosine to 2.2e-5 at 14.3T, that for 333B, then 7.3e-6 for 167B."""
    schedule = Schedule(kind="deepseek_v3", floor=0.1, warmup_steps=20)
    rate = lambda step: 2.2e-4 * schedule.factor(step, T)
    assert rate(0) == pytest.approx(2.2e-4 / 20)
    assert rate(19) == pytest.approx(2.2e-4)
    assert rate(20) == rate(999) == pytest.approx(2.2e-4)
    assert rate(1000) == pytest.approx(2.2e-4)
    assert rate(1215) == pytest.approx((2.2e-4 + 2.2e-5) / 2, rel=1e-6)  # half-way between 10T and 14.3T
    assert rate(1429) == pytest.approx(2.2e-5, rel=1e-3)
    assert rate(1430) == rate(1463) == pytest.approx(2.2e-5)
    assert rate(1464) == rate(1479) == pytest.approx(7.3e-6)


def test_the_warm_up_fits_the_run_unless_it_is_given():
    assert [Schedule().warmup(steps) for steps in (1, 9, 10, 90, 200, 10_000)] == [0, 0, 1, 9, 20, 20]
    assert Schedule(warmup_steps=7).warmup(10_000) == 7
    assert [Schedule(kind="constant").factor(step, 30) for step in range(4)] == pytest.approx([1 / 3, 2 / 3, 1, 1])


def test_constant():
    schedule = Schedule(kind="constant", warmup_steps=4)
    assert [schedule.factor(step, 8) for step in range(8)] == [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]


def test_cosine_ends_at_its_floor():
    schedule = Schedule(kind="cosine", floor=0.2, **PLAIN)
    assert schedule.factor(99, 100) == pytest.approx(0.2)
    assert schedule.factor(49, 100) == pytest.approx(0.6)
    assert schedule.factor(0, 100) == pytest.approx(0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi / 100)))


def test_wsd_decays_over_its_last_steps():
    schedule = Schedule(kind="wsd", floor=0.1, decay=0.2, **PLAIN)
    factors = [schedule.factor(step, 50) for step in range(50)]
    assert factors[:40] == [1.0] * 40
    assert factors[40:] == pytest.approx([1 - 0.09 * (i + 1) for i in range(10)])


def test_wsd_decays_early_where_its_gate_opened():
    schedule = Schedule(kind="wsd", floor=0.0, decay=0.2, **PLAIN)
    assert schedule.decay_steps(50) == 10
    factors = [schedule.factor(step, 50, decay_from=15) for step in range(26)]
    assert factors[:15] == [1.0] * 15
    assert factors[15:25] == pytest.approx([0.9 - 0.1 * i for i in range(10)])
    assert factors[25] == 0.0
    assert Schedule(kind="cosine").decay_steps(50) == 0


@given(
    kind=st.sampled_from(["constant", "cosine", "wsd", "deepseek_v3"]),
    steps=st.integers(1, 300),
    warmup=st.integers(0, 20),
    floor=st.floats(0.05, 1),
)
def test_every_schedule_rises_once_and_never_again(kind, steps, warmup, floor):
    schedule = Schedule(kind=kind, warmup_steps=warmup, floor=floor, last=0.01)
    factors = [schedule.factor(step, steps) for step in range(steps)]
    assert all(0 < f <= 1 for f in factors)
    assert factors[:warmup] == sorted(factors[:warmup])
    assert factors[warmup:] == sorted(factors[warmup:], reverse=True)


def test_points_out_of_order_are_refused():
    with pytest.raises(ValidationError, match="must rise in this order"):
        Schedule(kind="deepseek_v3", constant_until=0.9, cosine_until=0.8)


def test_rows_grow_as_v3s_batch():
    assert [batch_rows(step, 15360, 3072, 100) for step in (0, 50, 100, 999)] == [3072, 9216, 15360, 15360]
    assert batch_rows(0, 8, None, 100) == 8
    assert batch_rows(0, 8, 2, 0) == 8
