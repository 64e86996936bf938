from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ziphius.evaluate.metrics import majority, mean_ci, pass_at_k, wilson


@given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(case):
    n, c, k = case
    subsets = list(combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_for_many_samples(case):
    n, c, k = case
    assert pass_at_k(n, c, k) == pytest.approx(1 - comb(n - c, k) / comb(n, k), abs=1e-9)
    assert pass_at_k(n, c, 1) == pytest.approx(c / n)


@pytest.mark.parametrize("case", [(0, 0, 1), (3, 4, 1), (3, -1, 1), (3, 1, 0), (3, 1, 4)])
def test_pass_at_k_refuses(case):
    with pytest.raises(ValueError, match="must fulfil"):
        pass_at_k(*case)


@pytest.mark.parametrize(
    ("answers", "verdicts", "expected"),
    [
        (["4", "4", "5"], [True, True, False], 1.0),
        (["4", "5", "5"], [True, False, False], 0.0),
        (["4", "5"], [True, False], 0.5),
        (["5", "4", "6"], [False, True, False], 1 / 3),
        (["", "", "4"], [False, False, True], 1.0),
        ([" 4", "4 ", "5"], [True, True, False], 1.0),
        (["", " "], [False, False], 0.0),
        ([], [], 0.0),
        (["4", "4", "5"], [None, None, True], 0.0),
        (["4", "5"], [None, True], 0.5),
        (["4", "5"], [None, None], 0.0),
        (["4", "5", "5"], [None, True, True], 1.0),
        (["4", "4", "5"], [None, True, False], 1.0),
    ],
)
def test_majority(answers, verdicts, expected):
    assert majority(answers, verdicts) == pytest.approx(expected)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=9), st.randoms())
def test_majority_does_not_depend_on_order(numbers, rng):
    judge = lambda values: majority([str(value) for value in values], [value == 1 for value in values])
    before = judge(numbers)
    rng.shuffle(numbers)
    assert judge(numbers) == before


def test_majority_refuses_contradictions():
    with pytest.raises(ValueError, match="both right and wrong"):
        majority(["4", "4"], [True, False])
    with pytest.raises(ValueError, match="shorter"):
        majority(["4", "4"], [True])


def test_wilson_agrees_with_published_values():
    # Newcombe 1998, Stat. Med. 17, Table I, method 3 (score, no continuity correction)
    assert wilson(81, 263, 1.959964) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148, 1.959964) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 20, 1.959964) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(1, 29, 1.959964) == pytest.approx((0.0061, 0.1718), abs=5e-5)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share_and_mirrors(case):
    successes, n = case
    low, high = wilson(successes, n)
    assert 0 <= low <= successes / n <= high <= 1
    assert wilson(n - successes, n) == pytest.approx((1 - high, 1 - low))


def test_wilson_refuses():
    with pytest.raises(ValueError, match="3 successes of 2"):
        wilson(3, 2)


def test_mean_ci_by_hand():
    mean, low, high = mean_ci([0.0, 0.5, 1.0, 0.5], z=2.0)
    half = 2 * np.sqrt((0.25 + 0.25) / 3) / 2
    assert (mean, low, high) == pytest.approx((0.5, 0.5 - half, 0.5 + half))


def test_mean_ci_covers_with_samples_clustered_by_problem():
    """Problems differ in difficulty: intervals over problems hold the truth, intervals over samples would not."""
    rng, samples, problems, held, naive = np.random.default_rng(0), 16, 60, 0, 0
    for _ in range(400):
        chance = rng.beta(0.5, 0.5, problems)
        rights = rng.binomial(samples, chance)
        _, low, high = mean_ci(rights / samples)
        held += low <= 0.5 <= high
        low, high = wilson(int(rights.sum()), problems * samples)
        naive += low <= 0.5 <= high
    assert 0.92 <= held / 400 <= 0.98
    assert naive / 400 < 0.75


def test_mean_ci_of_equal_means_keeps_a_width():
    assert mean_ci([1.0] * 20) == pytest.approx((1.0, *wilson(20, 20)))
    assert mean_ci([0.5, 0.5]) == pytest.approx((0.5, *wilson(1, 2)))


@pytest.mark.parametrize("means", [[], [[0.5]], [1.5], [float("nan")]])
def test_mean_ci_refuses(means):
    with pytest.raises(ValueError, match="flat list"):
        mean_ci(means)
