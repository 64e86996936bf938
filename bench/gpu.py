"""Everything that is owed a GPU, in one command that ends within nine minutes: `make gpu`.

    python bench/gpu.py                      all of it, on the first GPU
    python bench/gpu.py --list               the commands and their limits, and nothing else
    python bench/gpu.py --only tests train-100M
    python bench/gpu.py --device cpu --quick      does it run at all, without a GPU

Each item is a process with a time limit of its own; what fails or takes too long is put down as that, and the rest goes
on. bench/results/gpu-CARD/ then holds a log of each item, the result files of the benches, `summary.json` and
`summary.md`. Nothing is installed and nothing is fetched: it runs from the repository with PYTHONPATH=. .
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PARTS = ("pydantic", "typer", "rich", "tokenizers", "safetensors", "jinja2", "tomli_w", "pytest", "triton",
         "transformers", "reasoning_gym", "math_verify", "llguidance")  # fmt: skip
TESTED = ("tests/ops", "tests/engine", "tests/train")  # where tests for a card are: to collect all takes its time
MINUTES = 8.75  # for all of it
SHORT = ("pretrain.train.steps=120", "pretrain.train.gate_every=60", "cold_start.train.steps=40", "rl.train.steps=6",
         "evaluation.n=64")  # fmt: skip


@dataclass(frozen=True)
class Item:
    """One thing to run: `limit` seconds at most."""

    name: str
    command: list[str]
    limit: float


def items(device: str, quick: bool, folder: Path, run: Path) -> list[Item]:
    """What is owed, the most wanted first. Results go into `folder`, the run of the recipe into `run`."""
    python = sys.executable
    bench = lambda name, *more: [
        python, f"bench/{name}.py", "--device", device, "--results", str(folder), *(["--quick"] if quick else []), *more
    ]  # fmt: skip
    train = lambda size: bench("train", "--budget", "12", "--sizes", size, "--machine", size)
    sizes = {"1M": 80, "10M": 80} if quick else {"100M": 80, "1B": 115}
    changes = [part for change in SHORT for part in ("--set", change)]
    recipe = [python, "-c", "from ziphius.cli import main; main()", "run", "recipes/r1-cpu.toml", "--device", device]
    return [
        Item("tests", [python, "-m", "pytest", "-q", "-m", "gpu", "--continue-on-collection-errors", *TESTED], 90),
        *(Item(f"train-{size}", train(size), limit) for size, limit in sizes.items()),
        Item("recipe", [*recipe, "--out", str(run), *changes], 100),
        Item("latent_decode", bench("latent_decode"), 55),
        Item("engine", bench("engine", "--rounds", "3", "--sizes", "small", *([] if quick else ["190M"])), 100),
    ]


def run_all(owed: Sequence[Item], folder: Path, minutes: float) -> list[dict[str, Any]]:
    """Run each item, with its log in `folder`, until the time is over; what became of each."""
    folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * minutes
    outcomes = []
    for item in owed:
        left = min(item.limit, end - time.monotonic())
        print(f"{item.name}: {shlex.join(item.command)}", flush=True)
        outcome: dict[str, Any] = {"name": item.name, "command": shlex.join(item.command), "limit": item.limit}
        outcome |= run_one(item, folder, left) if left > 1 else {"outcome": "no time was left"}
        outcomes.append(outcome)
        print(f"{item.name}: {outcome['outcome']}", flush=True)
    return outcomes


def run_one(item: Item, folder: Path, seconds: float) -> dict[str, Any]:
    """One item in a process group of its own, which is ended when its time is over."""
    path, began = folder / f"{item.name}.log", time.monotonic()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "COLUMNS": "150"}
    try:
        with path.open("wb") as log:
            process = subprocess.Popen(
                item.command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
            )
    except OSError as error:
        return {"outcome": f"could not be started: {error}"}
    try:
        code = process.wait(seconds)
        outcome = "done" if code == 0 else f"failed with code {code}"
    except subprocess.TimeoutExpired:
        outcome = f"stopped after {seconds:.0f} s"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    lines = [line.rstrip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return {"outcome": outcome, "seconds": round(time.monotonic() - began, 1), "last_lines": lines[-12:]}


def summarise(outcomes: list[dict[str, Any]], card: str, folder: Path) -> None:
    """`summary.json` and `summary.md`: what became of each item, and how its log ends."""
    missing = [name for name in PARTS if find_spec(name) is None]
    content = {"card": card, "date": time.strftime("%Y-%m-%dT%H:%M:%S"), "missing": missing, "items": outcomes}
    lines = [f"# {card}, {content['date']}", ""]
    if missing:
        lines += [f"Not installed here: {', '.join(missing)}.", ""]
    lines += ["| Item | Outcome | Seconds |", "|---|---|---|"]
    lines += [f"| {each['name']} | {each['outcome']} | {each.get('seconds', '')} |" for each in outcomes]
    for each in outcomes:
        lines += ["", f"## {each['name']}", f"`{each['command']}`", "", "```", *each.get("last_lines", []), "```"]
    for name, text in (("summary.json", json.dumps(content, indent=1)), ("summary.md", "\n".join(lines))):
        with tempfile.NamedTemporaryFile("w", dir=folder, delete=False) as aside:
            aside.write(text + "\n")
        os.replace(aside.name, folder / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try the commands")
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument("--only", nargs="+", default=None, help="names of items")
    parser.add_argument("--list", action="store_true", help="print the commands only")
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"for all of it (default {MINUTES:g})")
    options = parser.parse_args()
    card = card_name(options.device)
    os.chdir(ROOT)
    folder = Path("bench") / "results" / (f"gpu-{card}" + "-quick" * options.quick)
    with tempfile.TemporaryDirectory() as aside:
        run = Path(aside) / "run"
        owed = items(options.device, options.quick, folder, run)
        owed = [item for item in owed if not options.only or item.name in options.only]
        if options.list:
            for item in owed:
                print(f"{item.name:14} {item.limit:4.0f} s  {shlex.join(item.command)}")
            return
        outcomes = run_all(owed, folder, options.minutes)
        with suppress(FileNotFoundError):
            shutil.copy(run / "summary.json", folder / "recipe.json")
    summarise(outcomes, card, folder)
    print(f"Written to {folder}/summary.md")
    sys.exit(any(each["outcome"] != "done" for each in outcomes))


def card_name(device: str) -> str:
    """The card's name as the benches spell it; the processor's where there is none."""
    sys.path.insert(0, str(ROOT))
    from bench.common import machine_name
    from ziphius.train.place import join

    try:
        return machine_name(join(device))
    except ValueError as error:
        sys.exit(f"bench/gpu.py: {error}")


if __name__ == "__main__":
    main()
