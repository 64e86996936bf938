from dataclasses import replace
from datetime import date

import pytest

from ziphius.cost.data import Data
from ziphius.cost.money import rental_rate
from ziphius.cost.rl import RLRequest, rl_plan

DATA = Data()
H800 = DATA.accelerator("h800")
ZERO = RLRequest("deepseek-v3", DATA.shape("deepseek-v3"), H800, 512, 10400, software=date(2024, 12, 1))


def plan(request=ZERO):
    return rl_plan(request, DATA, rental_rate(H800, DATA))


def test_r1_zero_took_a_hundred_thousand_hours():
    found = plan()
    assert found.gpu_hours.low < 101_000 < found.gpu_hours.high
    assert found.gpu_hours.point == pytest.approx(101_000, rel=0.25)
    assert found.dollars.point == pytest.approx(2 * found.gpu_hours.point)
    assert found.cycles == 650
    assert found.generated_tokens == 10400 * 512 * 6000


def test_the_longest_answers_set_the_time_of_a_rollout():
    short = plan(replace(ZERO, max_length=16384))
    assert plan().parts["rollout"] > 1.5 * short.parts["rollout"]
    drafted = plan(replace(ZERO, acceptance=0.85))
    assert drafted.parts["rollout"] < 0.75 * plan().parts["rollout"]


def test_parts_are_linear_in_steps():
    twice = plan(replace(ZERO, steps=20800))
    assert twice.gpu_hours.point == pytest.approx(2 * plan().gpu_hours.point)
    assert twice.parts == plan().parts


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rollout_outputs": 8000}, "a rollout of 8000 outputs is no multiple of 512 a step"),
        ({"decode_gpus": 48}, "--decode-gpus 48 does not divide the 512 GPUs"),
        ({"decode_gpus": 4}, "does not fit 4 h800 for rollouts"),
    ],
)
def test_what_cannot_be_is_refused(change, says):
    with pytest.raises(ValueError, match=says):
        plan(replace(ZERO, **change))
