import timeit

import pytest

from ziphius.tasks import TaskError, family_names, make_family, split_of
from ziphius.tasks.base import SPLIT_PERCENT
from ziphius.tasks.gym import GymVerifier

from .gym_settings import NO_DEFAULTS, NO_ORACLE, SMALLER

GYM = [name for name in family_names() if name not in ("math", "own")]


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


@pytest.mark.parametrize("name", [name for name in GYM if name not in NO_DEFAULTS])
def test_right_answers_score_as_they_do_by_reasoning_gyms_own_checker(name):
    family = make_family(name, **(SMALLER | {"intermediate_integration": {}}).get(name, {}))
    problems = [family.draw(index) for index in range(20)]
    entries = [{"question": p.prompt, "answer": p.answer, "metadata": p.metadata} for p in problems]
    directly = [family._dataset.score_answer(entry["answer"], entry) for entry in entries]
    verdicts = family.verify_all([(problem, problem.answer) for problem in problems])
    assert [verdict.score for verdict in verdicts] == directly


def test_checkers_that_only_compare_need_no_process(monkeypatch):
    monkeypatch.setattr("ziphius.tasks.pool.shared_pool", None)
    here = [name for name in GYM if name not in NO_DEFAULTS and not make_family(name).judges_apart]
    assert {"leg_counting", "chain_sum", "products", "gcd"} <= set(here)
    assert not {"countdown", "n_queens", "codeio", "word_ladder"} & set(here)
    problem = (family := make_family("chain_sum")).problem("train", 0)
    assert family.verify(problem, problem.answer).correct is True


@pytest.mark.parametrize(
    ("raised", "score"),
    [(ZeroDivisionError("by\nzero"), None), (ValueError("no number"), 0.0), (RecursionError("too deep"), 0.0)],
)
def test_a_checker_that_fails_is_undecided_one_that_cannot_read_the_answer_says_wrong(monkeypatch, raised, score):
    family = make_family("word_ladder")

    def broken(self, answer, entry):
        raise raised

    monkeypatch.setattr(type(family._dataset), "score_answer", broken)
    judge = GymVerifier("word_ladder", {}).load()
    if score is None:
        with pytest.raises(ZeroDivisionError):  # for the worker to tell, see test_pool.py
            judge(family.draw(0), "3")
    else:
        assert judge(family.draw(0), "3")[0] == score


def test_limits_are_for_families_that_are_judged_apart():
    assert make_family("countdown", limit_s=2).judges_apart
    with pytest.raises(TaskError, match="leg_counting compares texts and takes no time: leave limit_s out"):
        make_family("leg_counting", limit_s=2)
    with pytest.raises(TaskError, match="countdown: limit_s = 0 must be seconds, above 0 and at most 3600"):
        make_family("countdown", limit_s=0)


def test_a_train_problem_is_cheap():
    family = make_family("leg_counting")
    seconds = min(timeit.repeat(lambda: [family.problem("train", index) for index in range(200)], number=1, repeat=5))
    assert seconds / 200 < 200e-6
