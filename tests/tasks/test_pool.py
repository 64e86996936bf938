import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ziphius.tasks import TaskError, process, verify_math
from ziphius.tasks import pool as pools
from ziphius.tasks.pool import MAX_ANSWER, Pool
from ziphius.tasks.verifier import judge_apart

ALGEBRA = r"2\sqrt{2}", r"\sqrt{8}"  # takes a worker
ECHO = """
import ctypes, os, sys, time

def judge(answer, gold):
    exec(answer)
    return 1
"""


def scores(verdicts):
    return [verdict.score for verdict in verdicts]


def worker_of(pool):
    return pool._owners[0].worker


@pytest.mark.parametrize(
    ("breaks", "reason"),
    [
        ("os._exit(3)", "the checker's process ended (code 3)"),
        ("ctypes.string_at(0)", "the checker's process ended (SIGSEGV)"),
        ("sys.exit(3)", "the checker failed: SystemExit: 3"),
        ("raise KeyboardInterrupt", "the checker failed: KeyboardInterrupt: "),
        ("1 / 0", "the checker failed: ZeroDivisionError: division by zero"),
        ("raise ValueError('\\x1b[2J\\n\\u202e' + 'x' * 10**6)", "the checker failed: ValueError:  [2J  " + "x" * 162),
    ],
)
def test_one_answer_that_breaks_its_worker_is_undecided_alone(pool, checker, breaks, reason):
    check = checker(ECHO)
    verdicts = pool.judge([check(breaks if place == 5 else "pass") for place in range(12)])
    assert scores(verdicts) == [None if place == 5 else 1.0 for place in range(12)]
    assert verdicts[5].reason == reason


@pytest.mark.parametrize(
    "said",
    [
        "b'nonsense\\n'",
        "b'[1, 1.0, \"right\"]\\n'",
        "b'{\"score\": 1.0}\\n'",
        "b'[' * 4000 + b'\\n'",
        "b'\\xff\\xfe\\n'",
        "b'x' * 60_000",
    ],
)
def test_a_forged_or_broken_reply_is_no_verdict(pool, checker, said):
    """Written to every open file, as a checker that was broken into might."""
    forge = f"""
for number in range(3, 60):
    try: os.write(number, {said})
    except OSError: pass
"""
    check = checker(ECHO)
    verdicts = pool.judge([check("pass"), check(forge), check("pass")])
    assert scores(verdicts) == [1.0, None, 1.0]
    assert verdicts[1].reason in (
        "the checker's process gave a reply that is none",
        "the checker's process said more than it should",
    )


@pytest.mark.parametrize("score", ["2", "-0.5", "float('nan')", "float('inf')"])
def test_scores_that_are_none(pool, checker, score):
    (verdict,) = pool.judge([checker(f"def judge(answer, gold):\n    return {score}\n")("x")])
    assert verdict.score is None
    assert "no score from 0 to 1" in verdict.reason


def test_a_worker_that_died_between_batches_costs_no_answer(pool, checker):
    check = checker(ECHO)
    assert scores(pool.judge([check("pass")])) == [1.0]
    os.kill(worker_of(pool)._process.pid, signal.SIGKILL)
    assert scores(pool.judge([check("pass")] * 3)) == [1.0] * 3


def test_a_worker_that_is_stopped_is_replaced(pool, checker, monkeypatch):
    check = checker(ECHO)
    assert scores(pool.judge([check("pass")])) == [1.0]
    monkeypatch.setattr(process, "START_LIMIT_S", 2.0)
    os.kill(worker_of(pool)._process.pid, signal.SIGSTOP)
    assert scores(pool.judge([check("pass")])) == [1.0]


def test_a_checker_that_cannot_be_loaded_says_why(pool, checker):
    verdicts = pool.judge([checker("import nonsense\ndef judge(answer, gold):\n    return 1\n")("x")] * 2)
    assert scores(verdicts) == [None, None]
    assert verdicts[0].reason == "the checker cannot be loaded: ModuleNotFoundError: No module named 'nonsense'"


def test_a_checker_that_ends_its_worker_while_it_is_loaded_is_tried_twice(pool, checker, monkeypatch):
    started = []
    monkeypatch.setattr(pools, "Worker", lambda reads: started.append(process.Worker(reads)) or started[-1])
    check = checker("import os\nos._exit(7)\ndef judge(answer, gold):\n    return 1\n")
    verdicts = pool.judge([check(str(i)) for i in range(9)])
    assert {(verdict.score, verdict.reason) for verdict in verdicts} == {(None, "the checker's process ended (code 7)")}
    assert len(started) == 2
    assert scores(pool.judge([checker(ECHO)("pass")])) == [1.0]


def test_endless_answers_are_not_even_sent(pool, checker):
    (verdict,) = pool.judge([checker(ECHO)("#" * (MAX_ANSWER + 1))])
    assert (verdict.score, verdict.reason) == (0.0, "longer than 100000 characters")
    assert worker_of(pool) is None
    assert scores(pool.judge([checker(ECHO)("#" * MAX_ANSWER)])) == [1.0]


def test_a_large_batch_gets_a_second_worker(checker):
    pool, check = Pool(2), checker("import os\ndef judge(answer, gold):\n    return int(answer) % 2\n")
    try:
        assert scores(pool.judge([check("1")])) == [1.0]
        assert len(pool._owners) == 1
        assert scores(pool.judge([check(str(i)) for i in range(200)])) == [float(i % 2) for i in range(200)]
        assert len(pool._owners) == 2
    finally:
        pool.close()


def test_equal_answers_are_judged_once(checker):
    check = checker(
        "import time\nseen = []\ndef judge(answer, gold):\n    seen.append(answer)\n    return len(seen) == 1\n"
    )
    verifier, problem = check("").verifier, check("").problem
    verdicts = judge_apart(verifier, [(problem, "a"), (problem, "b"), (problem, "a"), (problem, "a")])
    assert scores(verdicts) == [1.0, 0.0, 1.0, 1.0]


def test_many_threads_share_a_pool(checker):
    pool, check = Pool(2), checker("def judge(answer, gold):\n    return answer == gold\n")
    try:
        with ThreadPoolExecutor(6) as threads:
            jobs = [threads.submit(pool.judge, [check(str(i), str(i % 5)) for i in range(20)]) for _ in range(6)]
            assert [scores(job.result()) for job in jobs] == [[float(i < 5) for i in range(20)]] * 6
    finally:
        pool.close()


def test_an_interrupt_leaves_the_pool_in_order(pool, checker):
    check = checker(ECHO)
    assert scores(pool.judge([check("pass")])) == [1.0]
    threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGINT]).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        pool.judge([check("time.sleep(1.5)"), check("time.sleep(60)"), check("pass")])
    assert time.monotonic() - began < 1.4  # at once, not when the check is done
    assert scores(pool.judge([check("pass"), check("1 / 0")])) == [1.0, None]


def test_a_worker_that_cannot_start_is_an_error(pool, checker, monkeypatch):
    monkeypatch.setattr(process, "CODE", "import sys; sys.exit(1)")
    check = checker(ECHO)
    for _ in range(2):
        with pytest.raises(TaskError, match=rf"did not start \(.*code 1.*\); run {sys.executable} -P -c .* to see why"):
            pool.judge([check("pass")] * 3)
    monkeypatch.undo()
    assert scores(pool.judge([check("pass")])) == [1.0]


def test_closing_cuts_a_check_short(checker):
    pool, check = Pool(1), checker(ECHO)
    outcome = []
    thread = threading.Thread(target=lambda: outcome.extend(pool.judge([check("time.sleep(60)")])))
    thread.start()
    while worker_of(pool) is None:
        time.sleep(0.01)
    worker = worker_of(pool)
    pool.close()
    thread.join(timeout=20)
    assert worker._process.poll() is not None
    assert not Path(worker._scratch).exists()
    assert scores(outcome) == [None]
    pool.close()
    with pytest.raises(TaskError, match="closed"):
        pool.judge([check("pass")])


def test_the_shared_pool_starts_anew_after_it_was_closed():
    assert verify_math(*ALGEBRA, limit_s=60).score == 1.0
    assert pools.shared_pool()._owners
    before = pools.shared_pool()
    pools.close()
    assert all(owner.worker is None for owner in before._owners)
    pools.close()
    assert verify_math(*ALGEBRA, limit_s=60).score == 1.0
    assert pools.shared_pool() is not before


def test_a_forked_child_has_workers_of_its_own():
    code = """
import os
from ziphius.tasks import verify_math
from ziphius.tasks.pool import close, shared_pool
assert verify_math("x+x", "2x").score == 1.0
ours = shared_pool()._owners[0].worker._process
child = os.fork()
if child == 0:
    right = verify_math("y+y", "2y").score == 1.0 and shared_pool()._owners[0].worker._process.pid != ours.pid
    close()
    os._exit(0 if right else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert verify_math("z+z", "2z").score == 1.0
assert shared_pool()._owners[0].worker._process is ours
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_what_the_machine_gives_is_said_once_and_by_the_first_rank(checker, monkeypatch, capfd):
    check = checker(ECHO)
    for rank, times in (("0", 1), ("1", 0)):
        monkeypatch.setattr(pools, "_said", False)
        monkeypatch.setenv("RANK", rank)
        for _ in range(2):
            pool = Pool(1)
            pool.judge([check("pass")])
            pool.close()
        assert capfd.readouterr().err.count("ziphius: answers are judged in processes confined by") == times


def test_folders_of_owners_that_were_killed_are_swept(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left, ours, other = (tmp_path / f"{process.SCRATCH}{name}" for name in (f"{gone.pid}-a", f"{os.getpid()}-b", "x-c"))
    for folder in (left, ours, other):
        folder.mkdir()
        (folder / "file").write_text("x")
    process.sweep()
    assert [folder.exists() for folder in (left, ours, other)] == [False, True, True]
