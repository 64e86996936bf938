"""The goal of the planner's accuracy, held over every published row."""

import math

import pytest

from ziphius.cost.accuracy import accuracy, groups, summarise
from ziphius.cost.data import Data

OWN = """
[[published_train]]
name = "a run of mine"
model = "llama-3-8b"
gpu = "h100"
gpus = 8
seq = 8192
batch = 128
precision = "fp8"
parallel = "auto"
software = 2025-10-01
tokens_per_second_per_gpu = 14000
date = 2025-10-01
source = "my own measurement"
"""


@pytest.fixture(scope="module")
def found():
    return accuracy(Data())


def test_the_goal_is_met(found):
    assert not found.failed
    whole = summarise(found.judged)
    assert whole.rows >= 40
    assert whole.median_log_error <= 0.15
    assert whole.largest_factor <= 1.5
    assert whole.inside >= 0.8
    assert whole.widest <= 2.0
    assert whole.median_log_error < 0.5 * whole.naive_median_log_error


def test_rows_that_set_no_constant_do_as_well(found):
    outside = summarise(groups(found)["out of sample"])
    assert outside.rows >= 10
    assert outside.median_log_error <= 0.15
    assert outside.largest_factor <= 1.5


def test_leaving_a_row_out_hardly_changes_it(found):
    assert len(found.left_out) >= 25
    left = summarise([o for o in found.judged if o.row.name in found.left_out], found.left_out)
    assert left.median_log_error <= 0.15
    assert left.largest_factor <= 1.5
    moved = [o for o in found.judged if o.row.name in found.left_out]
    assert any(found.left_out[o.row.name] != pytest.approx(o.ratio) for o in moved)


def test_no_judged_row_is_from_memory_or_a_bound(found):
    assert all(o.row.confidence != "memory" and not o.row.bound for o in found.judged)
    assert len(found.judged) < len(found.outcomes)


def test_a_users_rows_are_judged_alone(tmp_path):
    (tmp_path / "mine.toml").write_text(OWN)
    mine = accuracy(Data([tmp_path / "mine.toml"]), own_only=True, leave_out=False)
    assert [o.row.name for o in mine.outcomes] == ["a run of mine"]
    assert abs(math.log(mine.outcomes[0].ratio)) < 0.4
    (tmp_path / "odd.toml").write_text(OWN.replace("tokens_per_second_per_gpu = 14000\n", ""))
    with pytest.raises(ValueError, match=r"odd\.toml:2: published_train: give one of tokens_per_second_per_gpu"):
        Data([tmp_path / "odd.toml"])
