"""The parent of a run tells what ended it: one sentence, whatever became of its processes."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from ziphius.recipe import launch, process
from ziphius.recipe.ending import LOST_PEERS, killed, memory_needed, out_of_memory
from ziphius.recipe.schema import load_recipe
from ziphius.recipe.screen import one_line
from ziphius.train.trainer import Interrupted

NATIVE = "a fault in native code, or memory or shared memory (/dev/shm) that ran out: this run needs about"


@pytest.fixture
def played(recipe, tmp_path, monkeypatch, capfd):
    """`played(a, b)`: a run of processes that do no more than these pieces of Python -> (exit code, lines)."""
    monkeypatch.setattr(launch, "_MOMENT_SECONDS", 0.5)

    def play(*parts):
        prelude = "import json, os, signal, sys, time\norder = json.load(sys.stdin)\n"
        prelude += "say = lambda words: os.write(int(os.environ['ZIPHIUS_WORDS']), words.encode())\n"
        body = "\n".join(f"if os.environ['RANK'] == '{rank}': {part}" for rank, part in enumerate(parts))
        monkeypatch.setattr(launch, "_COMMAND", [sys.executable, "-S", "-c", prelude + body])
        checked = load_recipe(recipe, [f"machine.processes={len(parts)}"])
        code = launch.launch(checked, tmp_path / "run", None, False)
        return code, capfd.readouterr().err.splitlines()

    return play


def test_processes_that_end_well_have_nothing_to_tell(played):
    assert played("print(order['run'], file=sys.stdout)", "pass") == (0, [])


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGHUP])
def test_a_signal_is_named(played, number):
    code, lines = played("time.sleep(0.2); sys.exit(75)", f"os.kill(os.getpid(), {int(number)})")
    assert code == 128 + number
    (line,) = lines
    assert line.startswith(f"ziphius: rank 1 was ended by {number.name}")
    assert (NATIVE in line) == (number != signal.SIGHUP)


@pytest.mark.parametrize("kills", [0, 1])
def test_a_kill_says_how_much_memory_was_needed(played, monkeypatch, kills):
    counts = iter([5, 5 + kills])
    monkeypatch.setattr(launch, "oom_kills", lambda: next(counts))
    code, (line,) = played(f"sys.exit({LOST_PEERS})", "os.kill(os.getpid(), 9)")
    assert code == 137
    who = "the kernel's out-of-memory killer" if kills else "someone's kill, or a limit on memory"
    assert f"rank 1 was ended by SIGKILL ({who}): this run needs about 0." in line
    assert re.search(r"GiB in each of 2 processes, and [\d.]+ GiB are free; make room and run the same", line)


def test_one_signal_that_ended_several_is_one_line(played):
    kill = "os.kill(os.getpid(), 9)"
    code, (line,) = played(kill, kill, kill)
    assert code == 137
    assert line.startswith("ziphius: ranks 0, 1 and 2 were ended by SIGKILL (")


def test_the_same_words_are_said_once_and_the_first_cause_counts(played):
    assert played("say('a mistake'); sys.exit(1)", "say('a mistake'); sys.exit(1)") == (1, ["ziphius: a mistake"])
    lost = f"say('lost the others'); sys.exit({LOST_PEERS})"
    assert played(lost, "time.sleep(0.2); say('no file'); sys.exit(1)") == (1, ["ziphius: rank 1: no file"])
    assert played(lost, lost) == (1, ["ziphius: lost the others"])


def test_an_end_without_a_word(played):
    code, (line,) = played("sys.exit(7)", "time.sleep(60)")  # the other is ended, and that is not told
    assert code == 7
    assert line.startswith("ziphius: rank 0 ended with code 7 and without a word: run the same command again")


def test_an_order_longer_than_a_pipe(monkeypatch):
    program = "import json, sys; sys.exit(len(json.load(sys.stdin)) % 100)"
    monkeypatch.setattr(launch, "_COMMAND", [sys.executable, "-S", "-c", program])
    worker = launch._Worker(dict(os.environ), json.dumps("y" * 300_042).encode())
    assert worker.process.wait(20) == 42


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_before_it_listens(played, number):
    timer = threading.Timer(0.3, os.kill, (os.getpid(), number))
    timer.start()
    code, lines = played("time.sleep(20)")
    timer.join()
    assert (code, lines) == (130, [])


# --- what is said ----------------------------------------------------------------------------------------------------


def test_memory_that_ran_out_is_recognised():
    for error in (MemoryError(), OSError(errno.ENOMEM, "x"), torch.OutOfMemoryError("CUDA out of memory")):
        assert out_of_memory(error)
    with pytest.raises(RuntimeError) as refused:
        torch.empty(1 << 55)
    assert out_of_memory(refused.value)
    assert not out_of_memory(ValueError("memory"))


def test_memory_within_a_limit_of_the_shell(recipe, monkeypatch):
    monkeypatch.setattr("ziphius.disk.memory.resource.getrlimit", lambda what: (1 << 29, 1 << 29))
    said = memory_needed(load_recipe(recipe), 1)
    assert "0.5 GiB are free" in said
    assert "machine.processes" not in said
    assert "SIGKILL" in killed([0], 9, load_recipe(recipe), 1, by_kernel=True)
    assert "signal 63" in killed([0], 63, load_recipe(recipe), 1, by_kernel=False)


def test_one_line_of_the_disk():
    error = OSError(errno.ENOSPC, "No space left on device", "/tmp/x")
    assert one_line(error).startswith("the disk of /tmp is full: saving /tmp/x, ")
    assert one_line(OSError(errno.EPIPE, "Broken pipe")).startswith("BrokenPipeError: ")


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (Interrupted("sft stopped at step 3"), 130, "sft stopped at step 3; the same command goes on from there"),
        (MemoryError(), 1, "memory ran out: this run needs about"),
        (
            RuntimeError("[/gloo/pair.cc:553] Connection closed by peer"),
            LOST_PEERS,
            "another process of this run ended",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "is full: saving"),
        (ValueError("lr: too much"), 1, "lr: too much"),
        (KeyError("x"), 1, "KeyError: 'x' (ziphius --debug shows the traceback)"),
    ],
)
def test_how_a_process_puts_its_end(recipe, tmp_path, monkeypatch, error, code, words):
    def fail(*_):
        raise error

    monkeypatch.setattr(process, "run_recipe", fail)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    order = {"run": str(tmp_path), "until": None, "control": False, "debug": False, "began": 0.0}
    try:
        found = process._obey(order | {"recipe": load_recipe(recipe).model_dump(mode="json")})
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert found[0] == code
    assert words in found[1]
    assert "\n" not in found[1]


# --- real processes --------------------------------------------------------------------------------------------------


def test_a_process_whose_parent_ended_while_it_was_loaded_does_not_begin():
    began_by = os.environ | {"ZIPHIUS_PARENT": str(os.getppid())}  # another's child by now: this test's
    ended = subprocess.run([sys.executable, "-m", "ziphius.recipe.process"], env=began_by, input=b"", timeout=120)
    assert ended.returncode == LOST_PEERS


def test_a_killed_process_and_a_limit_on_files(recipe, start, tmp_path):
    """Rank 1 is killed in the midst; at the next start a file may not grow to a state's size."""
    folder = tmp_path / "run"
    command = ["run", recipe, "--out", folder, "--until", "pretrain", "--set", "machine.processes=2"]
    first = start(*command)
    log = folder / "stages" / "02-pretrain" / "metrics.jsonl"
    while first.poll() is None and not (log.exists() and log.read_bytes()):
        time.sleep(0.01)
    children = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
    os.kill(int(children[1]), signal.SIGKILL)
    _, said = first.communicate(timeout=60)
    assert first.returncode == 137
    assert said.count("ziphius:") == 1
    assert "ziphius: rank 1 was ended by SIGKILL" in said
    program = "from ziphius.cli import main; main()"
    limited = ["bash", "-c", 'ulimit -f 800; exec "$@"', "-", sys.executable, "-c", program, *map(str, command)]
    second = subprocess.run(limited, capture_output=True, text=True, timeout=60)
    assert second.returncode == 1, second.stderr
    (line,) = [line for line in second.stderr.splitlines() if line.startswith("ziphius:")]
    assert re.search(
        r"ulimit -f, 800.0 KiB, allows no larger file: saving \S+\.pt needs 1\.\d MiB; raise the limit", line
    )
    assert re.search(r"run the same command again: it (goes on from step \d|begins the stage anew)$", line)
    assert "Traceback" not in second.stderr
    assert not list(folder.rglob(".*.tmp"))
