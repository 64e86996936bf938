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

from ziphius.recipe import gpus, launch, process
from ziphius.recipe.ending import LOST_PEERS, killed, memory_needed, out_of_memory
from ziphius.recipe.schema import RecipeError, load_recipe
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


# --- one process a GPU -----------------------------------------------------------------------------------------------


SHOW = """
import json, os, sys
order = json.load(sys.stdin)
seen = {key: os.environ.get(key) for key in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
open(f"{order['run']}-{seen['RANK']}.json", "w").write(json.dumps(seen))
"""


@pytest.fixture
def on_gpus(recipe, tmp_path, monkeypatch):
    """`on_gpus(2, "machine.device=cuda")`: what the processes of a start find in their environment."""
    monkeypatch.setattr(launch, "_COMMAND", [sys.executable, "-S", "-c", SHOW])
    run = tmp_path / "run"

    def start(gpus, *overrides, before=None):
        for left in tmp_path.glob("run-*.json"):
            left.unlink()
        if before is not None:
            run.mkdir(exist_ok=True)
            (run / "machine.json").write_text(json.dumps(before))
        checked = load_recipe(recipe, ["machine.device=auto", "machine.processes=0", *overrides])
        assert launch.launch(checked, run, None, False, count_gpus=lambda: gpus) == 0
        return [json.loads(path.read_text()) for path in sorted(tmp_path.glob("run-*.json"))]

    return start


CORES = min(os.cpu_count() or 1, 8)


@pytest.mark.parametrize(
    ("gpus", "overrides", "processes"),
    [
        (0, [], CORES),
        (1, [], 1),
        (2, [], 2),
        (2, ["machine.device=cuda"], 2),
        (2, ["machine.device=cuda:1"], 1),
        (2, ["machine.device=cpu"], CORES),
        (2, ["machine.processes=1"], 1),
    ],
)
def test_one_process_a_gpu_or_a_core(on_gpus, gpus, overrides, processes):
    started = on_gpus(gpus, *overrides)
    assert [each["LOCAL_RANK"] for each in started] == [str(rank) for rank in range(processes)]
    assert {each["WORLD_SIZE"] for each in started} == {str(processes)}


@pytest.mark.parametrize(
    ("gpus", "overrides", "said"),
    [
        (
            0,
            ["machine.device=cuda"],
            "machine.device is 'cuda', but torch sees 0 GPUs here; use auto",
        ),
        (2, ["machine.device=cuda:2"], "machine.device is 'cuda:2', but torch sees 2 GPUs here"),
        (
            2,
            ["machine.processes=3"],
            "machine.processes is 3, but there is one process a GPU and 'auto' has 2 here",
        ),
        (2, ["machine.device=cuda:1", "machine.processes=2"], "'cuda:1' has 1 here; lower it to 1, leave it out"),
    ],
)
def test_more_than_the_gpus_there_are(on_gpus, gpus, overrides, said):
    with pytest.raises(RecipeError, match=re.escape(said)):
        on_gpus(gpus, *overrides)


def test_how_many_there_were_counts_for_the_same_kind_of_device_only(on_gpus):
    one = {"device": "cpu", "processes": 1}
    assert len(on_gpus(0, before=one)) == 1
    assert len(on_gpus(2, before=one)) == 2
    assert len(on_gpus(0, before={"device": "cuda", "processes": 1})) == CORES


@pytest.mark.parametrize(("gpus", "processes"), [(0, CORES), (1, 1), (2, 2)])
def test_make_run_with_and_without_gpus(ziphius, tmp_path, monkeypatch, gpus, processes):
    """The command of `make run`, with torch's answer in a child and the work of the processes stood in for."""
    monkeypatch.setattr(launch, "_COMMAND", [sys.executable, "-S", "-c", SHOW])
    monkeypatch.setattr("ziphius.recipe.gpus._DRIVERS", ("/no/such/driver", __file__) if gpus else ())
    monkeypatch.setattr("ziphius.recipe.gpus._ASK", f"print({gpus})")
    monkeypatch.setattr("ziphius.recipe.screen.show_summary", lambda run: None)
    recipe = Path(__file__).parents[2] / "recipes" / "r1-cpu.toml"
    code, _, said = ziphius("run", recipe, "--out", tmp_path / "run")
    assert code == 0, said
    assert len(list(tmp_path.glob("run-*.json"))) == processes
    code, _, said = ziphius("run", recipe, "--out", tmp_path / "other", "--device", "cuda:7")
    assert (code, said) == (1, f"ziphius: machine.device is 'cuda:7', but torch sees {gpus} GPUs here; use auto, or "
                               "install a CUDA build of it\n")  # fmt: skip


def test_gpus_are_counted_by_a_child(monkeypatch):
    monkeypatch.setattr(gpus, "_DRIVERS", (__file__,))
    monkeypatch.setattr(gpus, "_ASK", "import sys; sys.exit(3)")  # a torch that does not load
    assert gpus.count_gpus() == 0
    monkeypatch.setattr(gpus, "_ASK", "print(4)")
    assert gpus.count_gpus() == 4


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
        (torch.OutOfMemoryError("CUDA out of memory"), 1, "the memory of the GPU ran out: use a smaller micro_rows"),
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
