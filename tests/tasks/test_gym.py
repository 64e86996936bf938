import timeit

import pytest

from ziphius.tasks import TaskError, family_names, make_family, split_of
from ziphius.tasks.base import SPLIT_PERCENT

# Families whose default problems are slow to make, at a smaller size (and a seed that needs few draws).
SMALLER = {
    "countdown": {"min_numbers": 3, "max_numbers": 3},
    "futoshiki": {"min_board_size": 4, "max_board_size": 4},
    "intermediate_integration": {"problem_types": ("linear",), "problem_type_weights": [1.0]},
    "knight_swap": {"max_nodes": 7, "min_pieces": 1, "max_pieces": 1, "min_steps": 1, "seed": 5},
    "puzzle24": {"min_value": 4, "operators": ("+", "*")},
    "quantum_lock": {"difficulty": 4},
    "zebra_puzzles": {"num_people": 3, "num_characteristics": 3},
}
# reasoning-gym ships no answer with these: their checkers judge any valid solution from the metadata alone.
NO_ORACLE = {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}
# A mixture of other families: it cannot be made without naming them.
NO_DEFAULTS = {"composite"}

GYM = [name for name in family_names() if name != "math"]


def test_all_of_reasoning_gym_is_there():
    assert len(GYM) >= 100
    assert {*SMALLER, *NO_ORACLE, *NO_DEFAULTS} <= set(GYM)


@pytest.mark.parametrize("name", [name for name in GYM if name not in NO_DEFAULTS])
def test_family(name):
    family = make_family(name, **SMALLER.get(name, {}))
    for split in SPLIT_PERCENT:
        problem = family.problem(split, 0)
        assert split_of(problem.prompt) == split
        assert problem.family == name
        if name in NO_ORACLE:
            assert problem.answer == ""
            assert family.verify(problem, "no answer").score < 0.1
        else:
            assert family.verify(problem, problem.answer).correct is True


def test_composite_says_what_it_needs():
    with pytest.raises(TaskError, match="composite refuses its own defaults: Must specify at least one dataset"):
        make_family("composite")


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("leg_countin", {}, "unknown family 'leg_countin'; did you mean leg_counting"),
        ("qqqqqqqq", {}, r"unknown family 'qqqqqqqq'; family_names\(\) lists all"),
        ("leg_counting", {"max_animal": 3}, "leg_counting has no setting 'max_animal'; it has max_animals, max_inst"),
        ("leg_counting", {"size": 3}, "no setting 'size'"),
        ("leg_counting", {"max_animals": 2}, "refuses max_animals = 2: max_animals must be >= min_animals"),
        ("leg_counting", {"max_animals": "2"}, "refuses max_animals = '2'"),
        ("chain_sum", {"seed": -1}, r"seed = -1 must be an integer in \[0, 2\*\*31\)"),
    ],
)
def test_refusals_are_one_line(name, settings, message):
    with pytest.raises(TaskError, match=message) as caught:
        make_family(name, **settings)
    assert "\n" not in str(caught.value)


def test_partial_scores_are_kept_but_not_correct():
    family = make_family("leg_counting")
    problem = family.problem("train", 0)
    verdict = family.verify(problem, "1" + problem.answer)
    assert 0 < verdict.score < 1
    assert verdict.correct is False


@pytest.mark.parametrize("outcome", [ZeroDivisionError("by\nzero"), float("nan")])
def test_a_checker_that_fails_is_undecided(monkeypatch, outcome):
    family = make_family("leg_counting")

    def broken(answer, entry):
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(family._dataset, "score_answer", broken)
    verdict = family.verify(family.problem("train", 0), "3")
    assert verdict.score is None
    assert "checker of leg_counting" in verdict.reason
    assert "\n" not in verdict.reason


def test_a_train_problem_is_cheap():
    family = make_family("leg_counting")
    seconds = min(timeit.repeat(lambda: [family.problem("train", index) for index in range(200)], number=1, repeat=5))
    assert seconds / 200 < 200e-6
