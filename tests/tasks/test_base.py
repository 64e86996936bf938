from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ziphius.tasks import Family, Problem, TaskError, Verdict, assert_disjoint, make_family, split_of
from ziphius.tasks.base import SPLIT_PERCENT, normalised


class Digits(Family):
    """As many problems as `space`."""

    name = "digits"

    def __init__(self, space: int, seed: int = 0):
        self.space, self.seed = space, seed

    def draw(self, ticket: int) -> Problem:
        return Problem(self.name, f"What is {ticket % self.space}?", str(ticket % self.space))

    def verify(self, problem: Problem, answer: str) -> Verdict:
        return Verdict(float(answer == problem.answer), "")


def test_the_splits_of_some_prompts_stay_what_they_were():
    found = {i: split_of(f"What is {i}?") for i in range(14)}
    assert [i for i, split in found.items() if split == "probe"] == [0, 7, 13]
    assert [i for i, split in found.items() if split == "test"] == [9, 11]


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60), st.sampled_from([" ", "\n", "\t", "  \n"]))
def test_whitespace_does_not_change_a_split(text, gap):
    assert split_of(text) == split_of(gap + gap.join(text.split()) + gap)


def test_the_shares_of_the_splits_are_as_stated():
    counts = {split: 0 for split in SPLIT_PERCENT}
    for number in range(20_000):
        counts[split_of(f"question number {number}")] += 1
    for split, percent in SPLIT_PERCENT.items():
        assert counts[split] / 200 == pytest.approx(percent, abs=1)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(0, 10**9), st.integers(1, 3), st.integers(0, 3), st.integers(1, 9))
def test_a_problem_is_a_pure_function_and_in_its_split(seed, index, low, more, instances):
    make = lambda: make_family(
        "leg_counting", seed=seed, min_animals=low, max_animals=low + more, max_instances=instances
    )
    one, other = make(), make()
    for split in SPLIT_PERCENT:
        problem = one.problem(split, index)
        assert problem == other.problem(split, index)
        assert split_of(problem.prompt) == split


def test_settings_and_seeds_cannot_bring_a_prompt_into_two_splits():
    families = [
        make_family("leg_counting", seed=seed, min_animals=1, max_animals=top, max_instances=2)
        for seed in (0, 1, 2)
        for top in (1, 2)
    ]
    assert_disjoint([*families, make_family("chain_sum", max_terms=2, max_digits=1)], 60)


def test_a_family_that_ignores_the_hash_is_found_out():
    class Leaky(Digits):
        def problem(self, split: str, index: int) -> Problem:
            return self.draw(index)

    with pytest.raises(TaskError, match="one prompt in both train and probe"):
        assert_disjoint([Leaky(1000)], 5)


def test_problems_are_distinct_and_the_same_each_time():
    family = make_family("leg_counting", min_animals=1, max_animals=2, max_instances=3)
    problems = family.problems("probe", 120)
    assert len({normalised(problem.prompt) for problem in problems}) == 120
    assert problems == family.problems("probe", 120)
    assert problems[:50] == family.problems("probe", 50)


def test_all_problems_of_a_small_split_are_found_and_no_more_can_be_had():
    family = Digits(300)
    there = sum(split_of(f"What is {i}?") == "probe" for i in range(300))
    assert len(family.problems("probe", there)) == there
    with pytest.raises(TaskError, match=rf"digits .* fewer than {there + 1} distinct problems for split probe"):
        family.problems("probe", there + 1)


def test_an_empty_split_is_an_error_not_a_loop():
    with pytest.raises(TaskError, match=r"digits .* too few distinct problems for split test: none in 400 draws"):
        Digits(1).problem("test", 0)


def test_unknown_split():
    with pytest.raises(TaskError, match="unknown split 'valid'; the splits are train, probe, test"):
        Digits(9).problem("valid", 0)


def test_a_family_without_a_writer_has_no_traces_or_lessons():
    family = make_family("gcd")
    assert family.trace(family.problem("train", 0), Random(0), thorough=True) is None
    assert family.lesson(Random(0)) is None


def test_undecided_is_neither_right_nor_wrong():
    assert [Verdict(score, "").correct for score in (None, 0.0, 0.67, 1.0)] == [None, False, False, True]
