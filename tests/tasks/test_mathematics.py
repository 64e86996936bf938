import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from ziphius.tasks import TaskError, assert_disjoint, make_family, verify_math

HANGS = r"9^{9^{9^{9}}}"
ALGEBRA = r"2\sqrt{2}", r"\sqrt{8}"  # takes the worker


@pytest.mark.parametrize(
    ("answer", "gold", "score"),
    [
        ("34", "34", 1.0),
        (" 34 ", "34", 1.0),
        ("+034", "34", 1.0),
        ("34.0", "34", 1.0),
        ("1,234", "1234", 1.0),
        ("35", "34", 0.0),
        ("-34", "34", 0.0),
        ("", "34", 0.0),
        ("34.5", "69/2", 1.0),
        (r"\$5", "5", 1.0),
        ("Tuesday", "tuesday", 1.0),
        ("Monday", r"\text{Tuesday}", 0.0),
    ],
)
def test_plain_answers_need_no_process(monkeypatch, answer, gold, score):
    monkeypatch.setattr("ziphius.tasks.pool.shared_pool", None)
    assert verify_math(answer, gold).score == score


@pytest.mark.parametrize(
    ("answer", "gold", "score"),
    [
        ("1/2", "0.5", 1.0),
        (r"2\sqrt{2}", r"\sqrt{8}", 1.0),
        (r"$x^2+2x+1$", "(x+1)^2", 1.0),
        ("x = 3", "3", 1.0),
        (r"\{1,2\}", r"\{2,1\}", 1.0),
        ("0.33", "1/3", 0.0),
        ("5", "[0,1)", 0.0),
        ("}{", "3", 0.0),
    ],
)
def test_notation_is_judged_by_meaning(answer, gold, score):
    assert verify_math(answer, gold, limit_s=60).score == score


def test_a_gold_that_cannot_be_read_is_undecided():
    verdict = verify_math("3", "}{", limit_s=60)
    assert verdict.score is None
    assert "nobody can be right by" in verdict.reason


def test_a_check_beyond_its_limit_is_undecided_and_the_next_one_works():
    verdict = verify_math(HANGS, "3", limit_s=0.5)
    assert (verdict.score, verdict.reason) == (None, "the check took longer than 0.5 s of processor time")
    assert verify_math(*ALGEBRA, limit_s=60).score == 1.0


def test_threads_share_the_workers():
    with ThreadPoolExecutor(4) as pool:
        answers = [HANGS if i == 5 else rf"\sqrt{{{i}}}" for i in range(12)]
        jobs = [pool.submit(verify_math, a, r"\sqrt{3}", 60 if a != HANGS else 0.5) for a in answers]
        scores = [job.result().score for job in jobs]
    assert scores == [None if i == 5 else float(i == 3) for i in range(12)]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_math_family(tmp_path):
    rows = [{"question": f"What is {i}/2?", "answer": f"\\frac{{{i}}}{{2}}"} for i in range(200)]
    family = make_family("math", path=write(tmp_path / "math.jsonl", [*rows, rows[0]]))
    assert_disjoint([family], 200)
    held = {split: len({family.problem(split, i).prompt for i in range(200)}) for split in ("train", "probe", "test")}
    assert sum(held.values()) == 200
    assert len(family.problems("probe", held["probe"])) == held["probe"]
    with pytest.raises(TaskError, match="fewer than"):
        family.problems("probe", held["probe"] + 1)
    problem = family.problem("train", 3)
    number = problem.prompt.split()[2].split("/")[0]
    assert family.verify(problem, f"{number}/2").correct is True
    assert family.verify(problem, f"{number}/3").correct is (number == "0")
    verdicts = family.verify_all([(problem, problem.answer), (problem, "1/7"), (problem, ""), (problem, f"{number}/2")])
    assert [verdict.score for verdict in verdicts] == [1.0, 0.0, 0.0, 1.0]


def test_worked_solutions_are_answers(tmp_path):
    rows = [
        {"question": "gsm8k", "answer": "2+2 = <<2+2=4>>4 eggs\n#### 4"},
        {"question": "math", "answer": r"We get $\boxed{\frac12}.$"},
    ]
    family = make_family("math", path=write(tmp_path / "math.jsonl", rows))
    assert [family.draw(i).answer for i in range(2)] == ["4", r"\frac12"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"question": "a"}\n', r"math\.jsonl:1 is not a JSON object with question and answer"),
        ('\n{"question": "a", "answer": 1}\n[1]\n', r"math\.jsonl:3"),
        ("nonsense\n", r"math\.jsonl:1"),
        ("\n", "holds no questions"),
        ('{"question": "a", "answer": 1}\n{"question": "b", "answer": "\\\\frac{1}{"}\n', r"math\.jsonl:2.*brace"),
        ('{"question": "a", "answer": "  "}\n', r"math\.jsonl:1.*empty"),
    ],
)
def test_bad_files(tmp_path, lines, message):
    path = tmp_path / "math.jsonl"
    path.write_text(lines)
    with pytest.raises(TaskError, match=message):
        make_family("math", path=path)


def test_bad_settings(tmp_path):
    with pytest.raises(TaskError, match="no setting 'file'; it has path, seed, limit_s"):
        make_family("math", file="x")
    with pytest.raises(TaskError, match="needs the setting path"):
        make_family("math")
    with pytest.raises(TaskError, match=r"none\.jsonl: No such file or directory; correct path, relative to where"):
        make_family("math", path=tmp_path / "none.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{"question": "\xe9"}')
    with pytest.raises(TaskError, match=r"cannot read .*latin\.jsonl: .*; save it as UTF-8"):
        make_family("math", path=tmp_path / "latin.jsonl")
    one = make_family("math", path=write(tmp_path / "one.jsonl", [{"question": "1+1?", "answer": 2}]))
    with pytest.raises(TaskError, match="none of its 1 questions is in split"):
        [one.problem(split, 0) for split in ("train", "probe", "test")]
