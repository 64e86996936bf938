import pytest

from ziphius.tasks import make_family
from ziphius.tasks.gates import GATES, refusal
from ziphius.tasks.gym import GymVerifier

from .gym_settings import SMALLER

LISTS = ["binary_matrix", "n_queens", "spiral_matrix", "string_insertion"]
NUMBERS = ["countdown", "puzzle24"]
FORMULAS = ["simple_integration", "intermediate_integration"]


def entry_of(name, index=0):
    problem = make_family(name, **SMALLER.get(name, {})).draw(index)
    return {"question": problem.prompt, "answer": problem.answer, "metadata": problem.metadata}


@pytest.fixture(scope="module")
def entries():
    return {name: entry_of(name) for name in GATES}


@pytest.mark.parametrize(
    ("names", "answers"),
    [
        (LISTS, ["[[1, 2], [3, -4]]", "['A', 'B']", "(1, 2.5)", "'ABCD'", " [1]\n", "[[], []]"]),
        (NUMBERS, ["3*(4 + 5) - 1", "-3 + 4/2", "2**5 + 7", "(1+2)*8", "0.5*8", "24 // 1 % 100", "2**(1/2)"]),
        (["polynomial_multiplication"], ["2*x**5 - 3*x + 1", "x*y*z", "-7", "(x + 1)**3", "X**2"]),
        (
            FORMULAS,
            [
                "x**2/2 + C", "2*exp(-x)*sin(3*x) + K", "log(abs(x), 10)", "E**(2*x)", "(3*x + 1)**(3/2)", "pi*x**0.5",
                "Rational(1, 3)*x**3", "sqrt(pi)*erfi(x)/2",
            ],
        ),
        (["complex_arithmetic"], ["3 - 4i", "inf"]),
    ],
)  # fmt: skip
def test_what_a_family_asks_for_passes(entries, names, answers):
    for name in names:
        assert [refusal(name, answer, entries[name]) for answer in answers] == [None] * len(answers)


@pytest.mark.parametrize(
    ("names", "answers", "reason"),
    [
        (LISTS, ["[f(1)]", "[x]", "{1: 2}", "{1}", "[1 for _ in [1]]", "[1, *[2]]", "[1] * 9", "b'a'", "[1j]"], "list"),
        (LISTS + NUMBERS, ["(", "", "1 +", "import os", "[" * 900, "\0", "9" * 5000, "x = 1", "\ud800"], "expression"),
        (NUMBERS, ["x", "f(1)", "1j", "True", "'1'", "[1]", "(1).real", "1 < 2", "~1", "1 << 2", "pi"], "more than"),
        (NUMBERS + FORMULAS, ["9**9**9**9", "2**1001", "2**-1001", "1e99999", "1E-99999"], "too large"),
        (NUMBERS, ["(1/3)**900*(1/3)**900*" * 40 + "1"], "too large"),
        (NUMBERS, ["1/0", "9" * 400, "1.0*9e300**2", "(9**999)**999", "(9e99*9e99)**99"], "no number that can be"),
        (["polynomial_multiplication"], ["sin(x)", "x.diff", "x(2)", "xy", "ё"], "more than numbers, letters"),
        (["polynomial_multiplication", *FORMULAS], ["x**1001", "x**9**9**9"], "too large a number"),
        (
            FORMULAS,
            [
                "Integral(2*x, x)", "Derivative(x)", "eval(x)", "S(1)", "sin.func", "sin(x)(x)", "sin(x, evaluate=1)",
                "sin(*x)", "sin()", "lambdify(x, x)", "x if x else x", "sin(1, 2, 3)", "__import__", "factorial(9)",
            ],
            "more than numbers, letters",
        ),
        (["complex_arithmetic", "number_sorting"], ["nan", "[NaN, NaN]", "nan+nanj"], "not a number"),
        (["coin_flip"], ["1e99999"], "too large a number"),
    ],
)  # fmt: skip
def test_all_else_is_refused(entries, names, answers, reason):
    for name in names:
        for answer in answers:
            assert reason in (refusal(name, answer, entries[name]) or ""), (name, answer)


def test_long_answers_are_refused(entries):
    for name in (*LISTS, *NUMBERS, *FORMULAS):
        assert "longer than" in refusal(name, "1" + " " * 10_000, entries[name])


def test_the_familys_own_answers_are_not_parsed():
    """Boards are no lists, and an integral may have no elementary form."""
    queens = entry_of("n_queens")
    assert all(refusal("n_queens", answer, queens) is None for answer in queens["metadata"]["valid_answers"])
    assert refusal("n_queens", "Q _\n_ Q", queens) == "not an expression"


def test_lists_that_checkers_pay_for_are_still_paid_for():
    queens, inserted = make_family("n_queens").draw(0), make_family("string_insertion").draw(0)
    board = str([row.split() for row in queens.answer.split("\n")])
    judge = GymVerifier("n_queens", {}).load()
    assert judge(queens, board) == (0.5, "partly right")
    assert GymVerifier("string_insertion", {}).load()(inserted, str(list(inserted.answer)))[0] == 0.1


@pytest.mark.parametrize("name", ["game_of_life_halting", "number_sorting", "complex_arithmetic"])
def test_checkers_that_can_be_talked_into_yes(name):
    """What reasoning-gym's own checkers would give full marks for, whatever the question."""
    family = make_family(name)
    trick = {
        "game_of_life_halting": lambda problem: "False" if problem.answer == "True" else "True",
        "number_sorting": lambda problem: str(["NaN"] * problem.answer.count(",") + ["NaN"]).replace("'", ""),
        "complex_arithmetic": lambda problem: "nan",
    }[name]
    for problem in (family.draw(index) for index in range(3)):
        entry = {"question": problem.prompt, "answer": problem.answer, "metadata": problem.metadata}
        assert family._dataset.score_answer(trick(problem), entry) == 1.0
        assert GymVerifier(name, {}).load()(problem, trick(problem))[0] == 0.0


def test_a_mixture_is_gated_by_the_family_that_asks(tmp_path):
    from reasoning_gym.composite import DatasetSpec

    settings = {"datasets": [DatasetSpec("n_queens", 1.0, {})]}
    problem = make_family("composite", **settings).draw(0)
    marker = tmp_path / "executed"
    judge = GymVerifier("composite", settings).load()
    assert judge(problem, f"[open({str(marker)!r}, 'w')]") == (0.0, "not a list")
    assert judge(problem, problem.answer)[0] == 1.0
    assert not marker.exists()
