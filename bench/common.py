"""What the benchmarks share: what the machine can do, taking turns, tables, profiles and result files."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ziphius.train.machine import describe, measure_bandwidth, measure_gemm
from ziphius.train.place import Place, join

RESULTS = Path(__file__).parent / "results"
# The network of recipes/r1-cpu.toml, kept here so that figures of different days mean the same network
SMALL_SHAPE: dict[str, Any] = {
    "depth": 4,
    "vocab_size": 768,
    "num_hidden_layers": 3,
    "kv_lora_rank": 96,
    "qk_nope_head_dim": 32,
    "rope_theta": 30.0,
    "tie_word_embeddings": True,
    "initializer_range": 0.06,
    "max_position_embeddings": 512,
}
PACKAGES = ("ziphius", "torch", "transformers", "trl", "accelerate", "datasets", "tokenizers", "numpy")
console = Console(width=None if os.isatty(1) else 150)


# --- the command line ------------------------------------------------------------------------------------------------


def arguments(description: str | None, device: str | None = None) -> argparse.ArgumentParser:
    """A parser with the flags that all benchmarks know; `device`: the default of `--device`, where there is one."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes and few rounds: does it run at all")
    parser.add_argument("--machine", default=None, help="name in the result file (default: CPU and cores)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="cores to use (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result file")
    if device is not None:
        parser.add_argument("--device", default=device, help="auto, cpu, cuda, or cuda:1 for one of several")
    return parser


def place_of(options: argparse.Namespace) -> Place:
    """Where this process computes, by `--device`; on the CPU for a benchmark without it."""
    return join(getattr(options, "device", "cpu"))


# --- taking turns ----------------------------------------------------------------------------------------------------


@dataclass
class Contestant:
    """One side with one set of settings. `run` does `work` units (tokens, say) and may return nothing."""

    name: str
    side: str  # "ours" or "peer"
    precision: str  # contestants are compared within a class: "fp32", "bf16"
    run: Callable[[], object]
    work: float
    settings: dict[str, Any] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return self.work / median(self.seconds)

    def as_dict(self) -> dict[str, Any]:
        rates = sorted(self.work / s for s in self.seconds)
        summary = {"median": self.rate, "slowest": rates[0], "fastest": rates[-1]} if rates else {}
        return {
            "name": self.name,
            "side": self.side,
            "precision": self.precision,
            "settings": self.settings,
            "work_per_run": self.work,
            "per_second": summary,
            "seconds": self.seconds,
        }


def revive(row: dict[str, Any]) -> Contestant:
    """A contestant that ran in another process, from its `as_dict`."""
    values = [row[key] for key in ("name", "side", "precision")]
    return Contestant(*values, nothing, row["work_per_run"], row["settings"], row["seconds"])


def nothing() -> None:
    """The work of a contestant that ran elsewhere."""


def timed(work: Callable[[], object]) -> float:
    """Seconds of `work`, with what it left a GPU to do."""
    began = time.perf_counter()
    work()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def take_turns(contestants: Sequence[Contestant], rounds: int, warmups: int = 1) -> None:
    """`rounds` rounds in which each runs once; the order turns by one each round, so neighbours' noise is shared."""
    for contestant in contestants:
        for _ in range(warmups):
            contestant.run()
    for number in range(rounds):
        shift = number % len(contestants)
        for contestant in [*contestants[shift:], *contestants[:shift]]:
            contestant.seconds.append(timed(contestant.run))


def rounds_within(budget: float, contestants: Sequence[Contestant], low: int, high: int) -> int:
    """How many rounds fit in `budget` seconds, between `low` and `high`; runs each contestant once to see."""
    once = sum(timed(contestant.run) for contestant in contestants)
    return max(low, min(high, int(budget / max(once, 1e-6))))


def ratio_of(ours: Contestant, peer: Contestant) -> dict[str, Any]:
    """How many times faster, by medians, and in each round."""
    rounds = [
        (peer_s / peer.work) / (our_s / ours.work) for our_s, peer_s in zip(ours.seconds, peer.seconds, strict=True)
    ]
    return {
        "ours": ours.name,
        "peer": peer.name,
        "ratio": ours.rate / peer.rate,
        "lowest_round": min(rounds),
        "highest_round": max(rounds),
    }


def best(contestants: Sequence[Contestant], side: str, precision: str) -> Contestant | None:
    """The fastest of one side in one precision class."""
    among = [c for c in contestants if c.side == side and c.precision == precision and c.seconds]
    return max(among, key=lambda c: c.rate, default=None)


def reason(error: BaseException) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: " + " ".join(str(error).split())[:300]


# --- the machine -----------------------------------------------------------------------------------------------------


def machine_limits(place: Place, threads: int, quick: bool = False) -> dict[str, Any]:
    """GEMM GFLOP/s by dtype and threads, copy GB/s by threads, and how exact fp32 'medium' products are. A GPU has one
    row, that of the threads asked for."""
    before = torch.get_num_threads()
    size, repeats = (512, 3) if quick else (8192 if place.on_gpu else 1024, 9)
    limits: dict[str, Any] = {"gemm_size": size, "gemm_gflops": {}, "copy_gb_per_s": {}}
    for count in [threads] if place.on_gpu else sorted({1, threads}):
        torch.set_num_threads(count)
        row = {name: measure_gemm(name, place, size, repeats) / 1e9 for name in ("fp32", "bf16")}
        torch.set_float32_matmul_precision("medium")
        row["fp32 'medium'"] = measure_gemm("fp32", place, size, repeats) / 1e9
        torch.set_float32_matmul_precision("highest")
        limits["gemm_gflops"][str(count)] = row
        limits["copy_gb_per_s"][str(count)] = measure_bandwidth(place, 64 if quick else 256, repeats) / 1e9
    torch.set_num_threads(before)
    limits["medium_relative_error"] = medium_error(place)
    return limits


def medium_error(place: Place) -> float:
    """Relative error (Frobenius) of an fp32 product under `set_float32_matmul_precision('medium')`; fp32: 1e-7."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(512, 512, generator=generator).to(place.device) for _ in range(2))
    exact = a.double() @ b.double()
    torch.set_float32_matmul_precision("medium")
    error = torch.linalg.norm((a @ b).double() - exact) / torch.linalg.norm(exact)
    torch.set_float32_matmul_precision("highest")
    return float(error)


def show_limits(limits: dict[str, Any]) -> None:
    console.print("[italic]What this machine can do (measured)[/]")
    table = Table()
    table.add_column("threads", justify="right")
    for name in ("fp32", "fp32 'medium'", "bf16"):
        table.add_column(f"GEMM {name}\nGFLOP/s", justify="right")
    table.add_column("copy\nGB/s", justify="right")
    for count, row in limits["gemm_gflops"].items():
        cells = [f"{row[name]:.0f}" for name in ("fp32", "fp32 'medium'", "bf16")]
        table.add_row(count, *cells, f"{limits['copy_gb_per_s'][count]:.1f}")
    console.print(table)
    error = limits["medium_relative_error"]
    kind = "fp32" if error < 1e-5 else "bf16"
    console.print(f"fp32 'medium' products err by {error:.1e} here, so that setting is compared in the {kind} class.\n")


def machine_name(place: Place) -> str:
    """The card that does the work, or the processor and its cores."""
    if place.on_gpu:
        return re.sub(r"[^a-z0-9]+", "-", place.device_name.lower()).strip("-")
    cpu = re.sub(r"\((R|TM|C)\)|CPU|Processor", "", str(describe(place)["cpu"]), flags=re.IGNORECASE)
    return re.sub(r"[^a-z0-9]+", "-", f"{cpu} {os.cpu_count()}c".lower()).strip("-")


def _processor() -> dict[str, Any]:
    """Family, model, and the instruction sets that matter here."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    fields = {line.partition(":")[0].strip(): line.partition(":")[2].strip() for line in lines}
    flags = set(fields.get("flags", "").split())
    wanted = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_tile")
    kept = {key.replace(" ", "_"): fields[key] for key in ("cpu family", "model", "cache size") if key in fields}
    return kept | {"instruction_sets": [flag for flag in wanted if flag in flags], "system": platform.platform()}


def _commit() -> str | None:
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + (" and uncommitted changes" if changed.strip() else "")


def versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


# --- results ---------------------------------------------------------------------------------------------------------


def result_path(name: str, options: argparse.Namespace, suffix: str = ".json") -> Path:
    """NAME-MACHINE.json in bench/results, or in `--results`; quick runs never overwrite full ones."""
    quick = "-quick" if options.quick else ""
    return options.results / f"{name}-{options.machine or machine_name(place_of(options))}{quick}{suffix}"


def write_results(name: str, options: argparse.Namespace, content: dict[str, Any]) -> Path:
    """Write `content` with the machine, versions, date and settings around it (of a path its last part); returns the
    file."""
    head = {
        "benchmark": name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": options.quick,
        "command": {key: value.name if isinstance(value, Path) else value for key, value in vars(options).items()},
        "machine": describe(place_of(options)) | _processor() | {"load_average": os.getloadavg()},
        "versions": versions(),
        "commit": _commit(),
    }
    path = result_path(name, options)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    with os.fdopen(handle, "w") as file:
        json.dump(head | content, file, indent=1)
        file.write("\n")
    os.chmod(aside, 0o644)
    os.replace(aside, path)
    console.print(f"Written to {path}")
    return path


def show_contestants(title: str, contestants: Sequence[Contestant], unit: str) -> None:
    """One row each, with the ratio to the best of the other side in its class."""
    console.print(f"[italic]{title}[/]")
    table = Table()
    for name in ("who", "class", "settings"):
        table.add_column(name)
    for name in (f"{unit}, median", "slowest", "fastest", "ratio to peer's best"):
        table.add_column(name, justify="right")
    for c in sorted(contestants, key=lambda c: (c.precision, c.rate)):
        rates = [c.work / s for s in c.seconds]
        peer = best(contestants, "peer", c.precision)
        ratio = f"{c.rate / peer.rate:.2f}x" if peer and c.side == "ours" else ""
        settings = ", ".join(f"{key} {value}" for key, value in c.settings.items())
        cells = [f"{value:,.0f}" for value in (c.rate, min(rates), max(rates))]
        table.add_row(c.name, c.precision, settings, *cells, ratio, style="bold" if c.side == "ours" else None)
    console.print(table)


# --- where the time goes ---------------------------------------------------------------------------------------------


def profile(work: Callable[[], object], top: int = 10) -> list[dict[str, Any]]:
    """The operations with most time of their own, from torch.profiler. A native kernel's time counts for the autograd
    function that calls it; "other" is Python and whatever the profiler does not see."""
    work()
    activities = [torch.profiler.ProfilerActivity.CPU]
    with _silent_stderr(), torch.profiler.profile(activities=activities) as profiler:
        seconds = timed(work)
    events = sorted(profiler.key_averages(), key=lambda e: e.self_cpu_time_total, reverse=True)
    rows = [
        {
            "name": event.key,
            "calls": event.count,
            "ms": event.self_cpu_time_total / 1e3,
            "share": event.self_cpu_time_total / 1e6 / seconds,
        }
        for event in events[:top]
    ]
    seen = sum(event.self_cpu_time_total for event in events) / 1e6
    rest = sum(event.self_cpu_time_total for event in events[top:]) / 1e3
    rows.append(
        {"name": "all further operations", "calls": len(events[top:]), "ms": rest, "share": rest / 1e3 / seconds}
    )
    left = max(0.0, seconds - seen)
    rows.append({"name": "other (Python)", "calls": 0, "ms": left * 1e3, "share": left / seconds})
    return rows


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """The profiler's C++ side writes log lines that no setting turns off."""
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


def show_profile(title: str, rows: Sequence[dict[str, Any]]) -> None:
    console.print(f"[italic]{title}[/]")
    table = Table()
    table.add_column("operation")
    for name in ("calls", "ms", "share"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(row["name"][:60], str(row["calls"]), f"{row['ms']:.1f}", f"{row['share']:.0%}")
    console.print(table)


# --- several processes -----------------------------------------------------------------------------------------------


def run_workers(command: Sequence[str], count: int, timeout: float) -> str | None:
    """Start `count` processes of one thread each as torchrun would, and wait; None, or what went wrong in a line."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
            "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // count)),
            "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", "lo"),
        }
        logs = [Path(folder) / f"{rank}.log" for rank in range(count)]
        workers = []
        for rank, log in enumerate(logs):
            with open(log, "w") as file:
                place = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                workers.append(subprocess.Popen(command, env=environment | place, stdout=file, stderr=file))
        deadline = time.monotonic() + timeout
        try:
            while any(worker.poll() is None for worker in workers):
                if time.monotonic() > deadline:
                    return f"stopped after the limit of {timeout:.0f} s"
                if any(worker.poll() not in (None, 0) for worker in workers):
                    time.sleep(2.0)
                    break
                time.sleep(0.1)
        finally:
            for worker in workers:
                if worker.poll() is None:
                    worker.kill()
                    worker.wait()
        for worker, log in zip(workers, logs, strict=True):
            if worker.returncode:
                lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
                return f"exit code {worker.returncode}: {lines[-1][:300] if lines else 'no message'}"
    return None


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def ended_after(process: subprocess.Popen[bytes], seconds: float) -> Iterator[None]:
    """Asks a server's process to stop when the block ends, and ends it where it has not after so long."""
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def until_ready(process: subprocess.Popen[bytes], ready: Callable[[], Awaitable[bool]]) -> None:
    """Waits for a server. Raises RuntimeError where it ends, or is not ready within two minutes."""
    for _ in range(600):
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with code {process.returncode}")
        if await ready():
            return
        await asyncio.sleep(0.2)
    raise RuntimeError("the server did not answer within two minutes")


def quiet_libraries() -> None:
    """Hide progress bars and warnings of transformers and friends; set before they are imported."""
    import warnings

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    warnings.filterwarnings("ignore")
