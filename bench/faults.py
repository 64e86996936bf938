"""What a run survives: kills, other runs, full disks, little memory, damaged files, hostile answers, new settings.

A run in miniature (tokenizer, pretraining, fine-tuning, GRPO, evaluations; about two seconds) is broken again and again
and started again, until it ends; then every file that it trained must hold the bits of a run that was let alone, and
what failed must have said so in one line. Prints a table of what was tried, how often, and what was lost, and fails
where that is anything but nothing.

    python bench/faults.py              # 200 kills and the rest, about twenty minutes on two cores
    python bench/faults.py --quick      # a few of each, two minutes; --only kills, --only disk, ... for one kind

Writes bench/results/faults-MACHINE.json. A file system of limited size needs the right to mount one; where it is
missing, a limit on the size of files stands in, and the table says so.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # with the next what every start would load by itself
import torch.utils.tensorboard
from common import arguments, console, write_results
from rich.table import Table

from ziphius.cost.ledger import read_abandoned, read_rows
from ziphius.ledger.clock import time_spent
from ziphius.ledger.folder import parts, present_stages, read_json
from ziphius.recipe.process import main as run_main
from ziphius.recipe.schema import load_recipe
from ziphius.tasks import family_names, make_family
from ziphius.tasks.pool import close as close_pool
from ziphius.train.metrics import read_metrics

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "tasks"))
from gym_settings import NO_DEFAULTS, SMALLER
from hostile import hostile

RECIPE = """
name = "faults"
seed = 1
[model]
depth = 2
overrides = { hidden_size = 32, n_routed_experts = 4, tie_word_embeddings = true, max_position_embeddings = 256 }
[tasks.sums]
family = "chain_sum"
settings = { min_terms = 2, max_terms = 3, min_digits = 1, max_digits = 1 }
[corpora.lessons]
task = "sums"
[stages.tokenizer]
kind = "tokenizer"
vocab_size = 320
documents = 200
[stages.pretrain]
kind = "pretrain"
seq_len = 48
rows = 4
train = { steps = 40, save_every = 3, schedule = { warmup_steps = 2 } }
[stages.cold_start]
kind = "sft"
task = "sums"
examples = 60
epochs = 2
seq_len = 96
rows = 4
train = { steps = 12, save_every = 2, schedule = { warmup_steps = 2 } }
[stages.rl]
kind = "grpo"
tasks = { sums = 1.0 }
grpo = { group_size = 2, prompts_per_step = 2, max_new_tokens = 8, policy = { kl_weight = 0.01 } }
train = { steps = 12, save_every = 2, optimizer = { lr = 1e-4 }, schedule = { warmup_steps = 2 } }
[evaluation]
tasks = ["sums"]
n = 16
samples = 2
max_new_tokens = 8
[machine]
processes = 1
"""
TIMES = ("seconds", "tokens_per_second", "mfu", "rollout_seconds")
SETTINGS = (
    "evaluation.show=2", "evaluation.n=9", "pretrain.train.save_every=7", "price.dollars_per_hour=2.0",
    'tasks.unused={family="gcd"}', "rl.train.steps=3", "rl.train.optimizer.lr=2e-4", "cold_start.examples=30",
    "pretrain.train.steps=6", "tokenizer.vocab_size=330", "seed=2", "model.overrides.hidden_size=64",
)  # fmt: skip


@dataclass
class Row:
    """One kind of fault: how often it was tried, and what went wrong, if anything."""

    what: str
    tried: int = 0
    lost: list[str] = field(default_factory=list)
    note: str = ""


@dataclass
class Ended:
    """How a start ended and what it said."""

    code: int
    said: str

    @property
    def last_line(self) -> str:
        return ([line for line in self.said.splitlines() if line.strip()] or [""])[-1]


class Bench:
    """The recipe, the bits that it must give, and a folder for runs."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.folder, self.rng = folder, rng
        self.recipe = folder / "faults.toml"
        self.recipe.write_text(RECIPE)
        self._runs = 0
        began = time.perf_counter()
        alone = self.new_run()
        ended = self.start(alone).wait()
        if ended.code:
            raise SystemExit(f"the run fails without any fault: {ended.last_line}")
        self.seconds = time.perf_counter() - began
        self.alone, self.expected = alone, bits(alone)

    def new_run(self) -> Path:
        self._runs += 1
        return self.folder / f"run{self._runs}"

    def start(self, run: Path, *overrides: str, limit: Callable[[], None] | None = None) -> Start:
        return Start(self.recipe, run, overrides, limit)

    def finish(self, run: Path, row: Row, *overrides: str) -> None:
        """Start `run` until it ends well, and hold it against the run that was let alone."""
        ended = self.start(run, *overrides).wait()
        if ended.code:
            row.lost.append(f"did not go on: {ended.last_line}")
        elif not overrides and bits(run) != self.expected:
            row.lost.append(f"other bits in {', '.join(k for k, v in bits(run).items() if v != self.expected.get(k))}")
        with contextlib.suppress(ValueError):
            row.lost += ledger_faults(run)
        shutil.rmtree(run, ignore_errors=True)


class Start:
    """A start of a run as a forked process of its own session: no libraries are loaded anew, so that many are quick."""

    def __init__(self, recipe: Path, run: Path, overrides: tuple[str, ...], limit: Callable[[], None] | None) -> None:
        order = {
            "recipe": load_recipe(recipe, list(overrides)).model_dump(mode="json"),
            "run": str(run), "until": None, "control": False, "debug": False, "began": time.time(),
        }  # fmt: skip
        with tempfile.NamedTemporaryFile("w", suffix=".json", dir=recipe.parent, delete=False) as file:
            json.dump(order, file)
        self.log = Path(file.name).with_suffix(".log")
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            out = os.open(self.log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
            for standard in (1, 2):
                os.dup2(out, standard)
            os.dup2(os.open(file.name, os.O_RDONLY), 0)
            os.environ["ZIPHIUS_WORDS"] = str(out)
            if limit:
                limit()
            try:
                run_main()
            finally:  # it ends the process by itself
                os._exit(99)

    def wait(self) -> Ended:
        _, status = os.waitpid(self.pid, 0)
        return Ended(os.waitstatus_to_exitcode(status), self.log.read_text(errors="replace"))

    def signal_after(self, seconds: float, number: int) -> bool:
        """Send a signal at a moment; False where the process had ended before it."""
        deadline = time.perf_counter() + seconds
        while time.perf_counter() < deadline:
            if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                return False
            time.sleep(0.002)
        os.kill(self.pid, number)
        return True


def bits(run: Path) -> dict[str, str]:
    """A digest of everything that the present stages of a run trained or scored."""
    found = {}
    for stage in present_stages(run):
        hasher = hashlib.blake2b()
        for name in ("tokenizer.json", "model.safetensors", "data.json"):
            if (stage / name).exists():
                hasher.update((stage / name).read_bytes())
        rows = [{k: v for k, v in row.items() if k not in TIMES} for row in read_metrics(stage)]
        asked = read_json(stage / "evaluation.json") or {}
        hasher.update(json.dumps([rows, asked.get("results")], sort_keys=True).encode())
        found[stage.name[:2]] = hasher.hexdigest()
    return found


def trained_files(run: Path) -> dict[Path, bytes]:
    names = ("tokenizer.json", "model.safetensors", "metrics.jsonl", "stage.json", "ledger.jsonl", "settings.json")
    return {path: path.read_bytes() for name in names for path in run.glob(f"stages/*/{name}")}


def ledger_faults(run: Path) -> list[str]:
    """Bills that do not add up to the time that the starts held the machine."""
    faults = []
    for part in parts(run):
        billed, spent = (
            sum(row.seconds for row in read_rows(part) + read_abandoned(part)),
            sum(time_spent(part).values()),
        )
        if abs(billed - spent) > 0.02 * spent + 1.0:
            faults.append(f"bills of {billed:.1f} s for {spent:.1f} s")
    return faults


# --- the faults ------------------------------------------------------------------------------------------------------


def kills(bench: Bench, count: int, number: int = signal.SIGKILL) -> Row:
    """Signals at random moments of a run, over and over, until it has ended."""
    row = Row("kill -9 at a random moment" if number == signal.SIGKILL else "SIGTERM at a random moment")
    hit: Counter[str] = Counter()
    while row.tried < count:
        run = bench.new_run()
        while row.tried < count:
            start = bench.start(run)
            sent = start.signal_after(bench.rng.uniform(0, 0.6 * bench.seconds), number)
            ended = start.wait()
            if not sent:
                break
            row.tried += 1
            if number == signal.SIGKILL:  # a stop leaves its piece of work before it ends
                hit[_doing(run)] += 1
            if number == signal.SIGTERM and ended.code not in (0, 130, -number):
                row.lost.append(f"code {ended.code}: {ended.last_line}")
        bench.finish(run, row)
    row.note = ", ".join(f"{what} {times}" for what, times in hit.most_common())
    return row


def _doing(run: Path) -> str:
    starts = sorted((run / "time").glob("*.json"))
    if not starts:
        return "start-up"
    what = read_json(starts[-1])["doing"]
    return ("evaluation" if "/" in what else what.partition(":")[0].partition("-")[2]) if ":" in what else "start-up"


def kills_of_workers(bench: Bench, count: int) -> Row:
    """The command itself with two processes: a worker is killed, and the parent tells what ended it."""
    row = Row("kill -9 of one of two processes")
    run = bench.new_run()
    command = [
        sys.executable,
        "-c",
        "from ziphius.cli import main; main()",
        "run",
        str(bench.recipe),
        "--out",
        str(run),
    ]
    command += ["--set", "machine.processes=2"]
    while row.tried < count:
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        worker = _worker_of(process.pid, run, bench.rng)
        if worker is None:
            process.communicate()
            break
        os.kill(worker, signal.SIGKILL)
        row.tried += 1
        _, said = process.communicate(timeout=120)
        if "SIGKILL" not in said or not process.returncode:
            row.lost.append(f"code {process.returncode}: {said.strip().splitlines()[-1:]}")
    code = subprocess.run(command, capture_output=True, check=False).returncode
    if code:
        row.lost.append(f"the run does not end: code {code}")
    return row


def _worker_of(parent: int, run: Path, rng: random.Random) -> int | None:
    """A child of the command once the run has begun its work; None where it ended before."""
    lines = rng.randrange(1, 30)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and Path(f"/proc/{parent}").exists():
        if subprocess.run(
            ["ps", "-o", "stat=", "-p", str(parent)], capture_output=True, text=True, check=False
        ).stdout.startswith("Z"):
            return None
        log = "".join(path.read_text() for path in run.glob("stages/*/metrics.jsonl"))
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        if log.count("\n") >= lines and children:
            return int(rng.choice(children))
        time.sleep(0.01)
    return None


def locks(bench: Bench, count: int) -> Row:
    """A second run in the folder of one that is at work."""
    row = Row("a second run in the same folder")
    while row.tried < count:
        run = bench.new_run()
        first = bench.start(run)
        time.sleep(bench.rng.uniform(0.2, 0.5) * bench.seconds)
        second = bench.start(run).wait()
        if os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            row.tried += 1
            if second.code != 1 or f"process {first.pid}" not in second.last_line:
                row.lost.append(f"not refused: code {second.code}: {second.last_line}")
        first.wait()
        bench.finish(run, row)
    return row


def disks(bench: Bench, count: int) -> Row:
    """A disk that fills up at some moment; then there is room again."""
    size = sum(path.stat().st_size for path in bench.alone.rglob("*") if path.is_file())
    row = Row("a full disk")
    with contextlib.ExitStack() as stack:
        mounted = stack.enter_context(_small_disk(bench.folder))
        row.note = "tmpfs of limited size" if mounted else "limit on the size of files: no right to mount"
        while row.tried < count:
            row.tried += 1
            share = bench.rng.uniform(0.1, 0.95)
            if mounted:
                run = mounted / "run"
                _resize(mounted, int(size * share))
                ended = bench.start(run).wait()
                _resize(mounted, 20 * size)
            else:
                run = bench.new_run()
                largest = max(path.stat().st_size for path in bench.alone.rglob("*") if path.is_file())
                ended = bench.start(run, limit=lambda most=int(largest * share): _limit_files(most)).wait()
            if ended.code != 1 or not re.search(r"(?i)disk|space|large", ended.last_line) or "Traceback" in ended.said:
                row.lost.append(f"code {ended.code}: {ended.last_line}")
            bench.finish(run, row)
    return row


@contextlib.contextmanager
def _small_disk(folder: Path) -> Iterator[Path | None]:
    place = folder / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "ziphius-faults", str(place)]
    done = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield place if done else None
    finally:
        if done:
            subprocess.run(["umount", "--lazy", str(place)], check=False)


def _resize(disk: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


def _limit_files(most: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


def memory(bench: Bench, count: int) -> Row:
    """Too little memory at some moment; then there is enough."""
    row, short, crashed = Row("too little memory"), 0, 0
    while row.tried < count:
        row.tried += 1
        run = bench.new_run()
        more = int(bench.rng.uniform(1, 120) * 2**20)
        ended = bench.start(run, limit=lambda more=more: _limit_memory(more)).wait()
        short += ended.code != 0
        if ended.code > 0 and not re.search(r"(?i)memory", ended.last_line):
            row.lost.append(f"code {ended.code}: {ended.last_line}")
        bench.finish(run, row)
        crashed += ended.code < 0  # in libraries that do not look at what they are given; the run's parent tells
    row.note = f"{short} ended for lack of it, {crashed} of them by a fault in native code, of which a parent tells"
    return row


def _limit_memory(more: int) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def damage(bench: Bench, count: int) -> Row:
    """The newest saved state loses a byte, its end, or all sense; the older one takes its place."""
    row = Row("a damaged state")
    while row.tried < count:
        run = bench.new_run()
        start = bench.start(run)
        start.signal_after(bench.rng.uniform(0.3, 0.8) * bench.seconds, signal.SIGKILL)
        start.wait()
        states = sorted(run.glob("stages/*/state/*.pt"), key=lambda path: path.stat().st_mtime_ns)
        unfinished = [path for path in states if not (path.parents[1] / "stage.json").exists()]
        if not unfinished:
            shutil.rmtree(run, ignore_errors=True)
            continue
        row.tried += 1
        _damage(unfinished[-1], bench.rng)
        ended = bench.start(run).wait()
        if unfinished[-1].name not in ended.said:
            row.lost.append(f"{unfinished[-1].name} was damaged and nobody said so: {ended.last_line}")
        if ended.code:  # the only state was damaged: the mend is the user's
            row.lost += [] if "state" in ended.last_line else [f"code {ended.code}: {ended.last_line}"]
            shutil.rmtree(unfinished[-1].parent)
        bench.finish(run, row)
    return row


def _damage(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    match rng.randrange(3):
        case 0:
            data[rng.randrange(len(data))] ^= 0xFF
        case 1:
            del data[rng.randrange(len(data)) :]
        case _:
            data[:] = rng.randbytes(len(data))
    path.write_bytes(data)


def settings(bench: Bench, count: int) -> Row:
    """A finished run is started again with other settings: all that it trained stays, to the bit."""
    row = Row("changed settings on a finished run")
    run = bench.new_run()
    shutil.copytree(bench.alone, run)
    for override in SETTINGS[:count]:
        row.tried += 1
        before = trained_files(run)
        ended = bench.start(run, override).wait()
        if ended.code:
            row.lost.append(f"{override}: {ended.last_line}")
        now = trained_files(run)
        row.lost += [f"{override}: {path.relative_to(run)}" for path, data in before.items() if now.get(path) != data]
    bench.finish(run, row)
    return row


def answers(bench: Bench, count: int) -> Row:
    """Answers that would run something, or run for ever, given to the verifiers of `count` families (0: all)."""
    row = Row("hostile answers")
    marker = bench.folder / "executed"
    texts = hostile(marker)
    undecided = 0
    names = [name for name in family_names() if name not in ("math", "own", *NO_DEFAULTS)]
    for name in names[:count] if count else names:
        family = make_family(name, **SMALLER.get(name, {}))
        problem = family.draw(0)
        verdicts = family.verify_all([(problem, text) for text in texts.values()])
        row.tried += len(texts)
        undecided += sum(verdict.score is None for verdict in verdicts)
        row.lost += [f"{name}: {text} is right" for text, v in zip(texts, verdicts, strict=True) if v.correct]
        if marker.exists():
            row.lost.append(f"{name}: an answer was executed")
            marker.unlink()
    row.note = f"{len(texts)} answers to each family; {undecided} undecided, none executed"
    close_pool()
    return row


# --- the table -------------------------------------------------------------------------------------------------------

FAULTS: dict[str, tuple[Callable[[Bench, int], Row], int, int]] = {  # how often, and how often when --quick
    "kills": (kills, 200, 10),
    "stops": (lambda bench, count: kills(bench, count, signal.SIGTERM), 40, 4),
    "workers": (kills_of_workers, 6, 1),
    "locks": (locks, 10, 2),
    "disk": (disks, 20, 3),
    "memory": (memory, 20, 3),
    "damage": (damage, 20, 3),
    "settings": (settings, len(SETTINGS), 4),
    "answers": (answers, 0, 5),
}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--only", choices=sorted(FAULTS), action="append", help="one kind of fault; may be repeated")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = []
    folder = Path(tempfile.mkdtemp(prefix="ziphius-faults-"))  # no object that a forked child would clean up at its end
    try:
        bench = Bench(folder, random.Random(options.seed))
        console.print(f"A run that is let alone takes {bench.seconds:.1f} s.")
        for name in options.only or FAULTS:
            fault, often, quick = FAULTS[name]
            began = time.perf_counter()
            rows.append(fault(bench, quick if options.quick else often))
            seconds = time.perf_counter() - began
            console.print(f"{rows[-1].what}: {rows[-1].tried} times, {len(rows[-1].lost)} lost ({seconds:.0f} s)")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    show(rows)
    content: dict[str, Any] = {"run_seconds": bench.seconds, "faults": [vars(row) for row in rows]}
    write_results("faults", options, content)
    if any(row.lost for row in rows):
        raise SystemExit("something was lost")


def show(rows: list[Row]) -> None:
    table = Table(title="What was tried, and what was lost")
    for heading in ("fault", "tried", "lost", "where, and how"):
        table.add_column(heading, justify="right" if heading == "tried" else "left")
    for row in rows:
        table.add_row(row.what, str(row.tried), "nothing" if not row.lost else f"{len(row.lost)}", row.note)
    console.print(table)
    for row in rows:
        for each in row.lost[:10]:
            console.print(f"[red]{row.what}[/]: {each}")


if __name__ == "__main__":
    main()
