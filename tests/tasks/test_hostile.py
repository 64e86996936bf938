"""No family executes, hangs on or is broken by what a model writes."""

import time

import pytest

from ziphius.tasks import family_names, make_family
from ziphius.tasks import pool as pools

from .gym_settings import NO_DEFAULTS, SMALLER
from .hostile import hostile

# Checkers that cannot take a sum with a thousand factors apart, or a deep formula, in the time given.
LIMIT_S = 0.4


def families(tmp_path):
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"question": "What is 17 * 2?", "answer": "34"}\n')
    checks = tmp_path / "checks.py"
    checks.write_text("def judge(answer, gold):\n    return answer.strip() == gold\n")
    yield make_family("math", path=questions, limit_s=LIMIT_S)
    yield make_family("own", path=questions, verifier=f"{checks}:judge", limit_s=LIMIT_S)
    yield make_family("composite", datasets=[gym_spec("n_queens"), gym_spec("countdown")], limit_s=LIMIT_S)
    for name in family_names():
        if name not in {"math", "own", *NO_DEFAULTS}:
            family = make_family(name, **SMALLER.get(name, {}))
            yield make_family(name, **SMALLER.get(name, {}), limit_s=LIMIT_S) if family.judges_apart else family


def gym_spec(name):
    from reasoning_gym.composite import DatasetSpec

    return DatasetSpec(name, 1.0, {})


@pytest.fixture
def shared():
    pools.close()
    yield
    pools.close()


def test_hostile_answers_are_wrong_or_undecided_in_every_family(tmp_path, shared):
    marker = tmp_path / "executed"
    answers = hostile(marker)
    families_ = list(families(tmp_path))
    assert len(families_) > 100
    assert len(answers) > 60
    right, undecided, slowest = [], 0, 0.0
    for family in families_:
        problem = family.draw(0)
        began = time.monotonic()
        verdicts = family.verify_all([(problem, answer) for answer in answers.values()])
        slowest = max(slowest, time.monotonic() - began)
        right += [(family.name, name) for name, v in zip(answers, verdicts, strict=True) if v.correct]
        undecided += sum(verdict.score is None for verdict in verdicts)
        assert all(verdict.reason.isprintable() and len(verdict.reason) <= 200 for verdict in verdicts)
        assert not marker.exists(), family.name
    assert right == []
    assert undecided < 0.01 * len(families_) * len(answers)  # what is plainly no answer is wrong
    assert slowest < 60
    workers = [owner.worker._process for owner in pools.shared_pool()._owners if owner.worker]
    assert workers
    pools.close()
    assert all(worker.poll() is not None for worker in workers)
