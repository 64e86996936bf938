import json

import pytest

from ziphius.tasks import TaskError, assert_disjoint, make_family

JUDGE = "def judge(answer, gold):\n    return answer.strip() == gold\n"


@pytest.fixture
def questions(tmp_path):
    rows = [{"question": f"What is {i} + 1?", "answer": i + 1, "unit": "apples"} for i in range(30)]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def own(tmp_path, questions, monkeypatch):
    """`own(source, **settings)` makes the family, the checker named relative to where the command is started."""
    monkeypatch.chdir(tmp_path)

    def make(source, verifier="checks.py:judge", **settings):
        (tmp_path / "checks.py").write_text(source)
        return make_family("own", path=questions, verifier=verifier, **settings)

    return make


def judged(family, *answers):
    problem = family.problem("train", 0)
    return [verdict.score for verdict in family.verify_all([(problem, answer) for answer in answers])]


def test_a_function_of_ones_own_judges(own):
    family = own(JUDGE)
    assert_disjoint([family], 20)
    problem = family.problem("train", 0)
    assert problem.family == "own"
    assert judged(family, problem.answer, f" {problem.answer} ", "no", "") == [1.0, 1.0, 0.0, 0.0]
    assert family.verify(problem, problem.answer).correct is True


def test_it_may_ask_for_the_whole_line(own):
    family = own("def judge(answer, gold, row):\n    return 0.5 * (row['unit'] in answer) + 0.5 * (gold in answer)\n")
    problem = family.problem("train", 0)
    assert judged(family, f"{problem.answer} apples", "apples", "-") == [1.0, 0.5, 0.0]


@pytest.mark.parametrize(
    "source",
    [
        "def judge(answer, gold, row=None):\n    return row is not None\n",
        "def judge(answer, gold, *more):\n    return len(more) == 1\n",
        "def judge(answer, /, gold, *, strict=False):\n    return not strict\n",
        "def judge(*all):\n    return len(all) == 3\n",
        "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\ndef judge(a, b): return A(1).x\n",
    ],
)
def test_shapes_of_functions(own, source):
    assert judged(own(source), "x") == [1.0]


def test_it_may_use_what_lies_beside_it(own, tmp_path):
    (tmp_path / "words_of_mine.py").write_text("GOOD = {'yes'}\n")
    (tmp_path / "list.txt").write_text("no")
    source = (
        "from pathlib import Path\nfrom words_of_mine import GOOD\n"
        "BAD = (Path(__file__).parent / 'list.txt').read_text()\n"
        "def judge(answer, gold):\n    return None if answer == BAD else answer in GOOD\n"
    )
    assert judged(own(source), "yes", "other", "no") == [1.0, 0.0, None]


def test_a_mended_checker_is_the_one_that_judges(own):
    assert judged(own(JUDGE), "x") == [0.0]
    assert judged(own(JUDGE.replace("answer.strip() == gold", "True")), "x") == [1.0]


def test_its_errors_leave_the_answer_undecided_and_are_told(own):
    family = own("def judge(answer, gold):\n    return 1 / int(answer)\n")
    zero, word, fine = family.verify_all([(family.problem("train", 0), answer) for answer in ("0", "two", "1")])
    assert zero.reason == "the checker failed: ZeroDivisionError: division by zero"
    assert word.reason.startswith("the checker failed: ValueError: invalid literal")
    assert [zero.score, word.score, fine.score] == [None, None, 1.0]


def test_its_limit_is_kept(own):
    family = own("def judge(answer, gold):\n    while True: pass\n", limit_s=0.2)
    assert family.verify(family.problem("train", 0), "x").reason.startswith("the check took longer than 0.2 s")


def test_the_file_is_never_run_here(own, tmp_path):
    own(f"open({str(tmp_path / 'run')!r}, 'w')\n" + JUDGE)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("source", "verifier", "message"),
    [
        (JUDGE, "checks.py", 'needs the setting verifier, as "checks.py:judge"'),
        (JUDGE, "", 'needs the setting verifier, as "checks.py:judge"'),
        (JUDGE, "other.py:judge", r"cannot read the verifier's file .*other\.py: No such file"),
        (JUDGE, "checks.py:check", r"checks\.py defines no function check; write def judge\("),
        ("judge = 3\n", "checks.py:judge", "defines no function judge"),
        ("async def judge(a, b): ...\n", "checks.py:judge", "defines no function judge"),
        ("def judge(answer):\n    return 1\n", "checks.py:judge", r"judge in .*checks\.py:1 takes other arguments"),
        ("def judge(a, b, c, d):\n    return 1\n", "checks.py:judge", "takes other arguments"),
        ("def judge(a, b, *, c):\n    return 1\n", "checks.py:judge", "takes other arguments"),
        ("def judge(:\n", "checks.py:judge", r"checks\.py is not Python"),
        ("\0", "checks.py:judge", r"checks\.py is not Python"),
    ],
)
def test_refusals_are_one_line(own, source, verifier, message):
    with pytest.raises(TaskError, match=message) as caught:
        own(source, verifier)
    assert "\n" not in str(caught.value)


def test_settings(own):
    with pytest.raises(TaskError, match="family own has no setting 'function'; it has path, seed, verifier, limit_s"):
        own(JUDGE, function="judge")
    with pytest.raises(TaskError, match="family own needs the setting path"):
        make_family("own", verifier="checks.py:judge")
    with pytest.raises(TaskError, match="limit_s = -1 must be seconds"):
        own(JUDGE, limit_s=-1)
