"""A service under attack, and what another user of it sees meanwhile.

`ziphius serve` runs a 1M network of random weights (the shape of recipes/r1-cpu.toml), with two keys. A victim asks
short questions with one of them, one after the other: 4 tokens, streamed, greedy. A stranger with the other key, from
another address of this machine, runs the attacks of bench/attacks.py in a process of its own, one after the other.
For each is printed: the victim's time to first token (p50, p95, worst), its errors, the service's memory at its peak
and afterwards, its open files, and what the stranger was told. Two more services run under some of the attacks: one
with 64 file descriptors, and one whose log nobody reads.

It fails (exit 1) if the victim ever waits longer than 1 s, gets an error or another answer than without the stranger,
if memory stays more than 256 MiB above where it was, if files stay open, if the log holds a line that is no JSON or
longer than 8 kB, or if the service does not end up healthy in the process that was started.

    pip install -c constraints.txt -e .[serve] psutil
    python bench/strangers.py                  # about eight minutes on two cores
    python bench/strangers.py --quick          # two seconds an attack; --only numbers,silent_sockets for some

Writes bench/results/strangers-MACHINE.json. Everything stays on 127.0.0.0/8.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Any

import psutil
from attacks import ATTACKS, MODEL
from common import arguments, console, ended_after, free_port, quiet_libraries, until_ready, write_results
from rich.table import Table
from serve import make_folder

from ziphius.serve.key_file import new_key

WORST_S = 1.0
MEMORY_MIB = 256
LONGEST_LINE = 8192
SETTLE_S = 10.0
FEW_FILES = ("numbers", "silent_sockets", "dripping_bodies", "garbage")
DEAF_LOG = ("long_words", "numbers")


@dataclass
class Service:
    """A running `ziphius serve`."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def memory_mib(self) -> float:
        """Of the process and all that it started."""
        total = 0
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(self.process.pid)
            for one in (process, *process.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    total += one.memory_info().rss
        return total / 2**20

    def files(self) -> int:
        return psutil.Process(self.process.pid).num_fds()


@dataclass
class Seen:
    """What the victim saw: seconds to each first token, and what went wrong."""

    first: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def figures(self) -> dict[str, Any]:
        if len(self.first) < 2:
            return {"asked": len(self.first), "faults": self.faults or ["nothing was answered"]}
        cuts = quantiles(self.first, n=20, method="inclusive")
        times = {"p50_ms": 1e3 * cuts[9], "p95_ms": 1e3 * cuts[18], "worst_ms": 1e3 * max(self.first)}
        return {"asked": len(self.first), **times, "faults": self.faults}


@contextlib.contextmanager
def serving(folder: Path, keys: Path, files: int | None = None, read_log: bool = True) -> Iterator[Service]:
    """The service, once it answers; with so many file descriptors, or with a log pipe that nobody reads."""
    port = free_port()
    program = "import sys; from ziphius.cli import main; main()"
    options = ["--port", str(port), "--name", MODEL, "--keys", str(keys), "--set", "memory_gib=0.125"]

    def limit() -> None:
        if files is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))

    with tempfile.TemporaryDirectory() as place:
        log = Path(place) / "log"
        with open(log, "wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-c", program, "serve", str(folder), *options],
                stdout=subprocess.DEVNULL,
                stderr=file if read_log else subprocess.PIPE,
                preexec_fn=limit,
            )
        with ended_after(process, 60):
            asyncio.run(until_ready(process, lambda: healthy(port)))
            yield Service(process, port, log)


async def healthy(port: int) -> bool:
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(5):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            answer = await reader.read()
            writer.close()
            return b'{"status":"ok"}' in answer
    return False


# --- the victim ------------------------------------------------------------------------------------------------------


async def question(port: int, key: str, place: int) -> tuple[float, str]:
    """Seconds to the first token, and the answer. Raises OSError or ValueError for any other end."""
    message = {"role": "user", "content": f"how deep does whale {place} dive?"}
    body = {"model": MODEL, "messages": [message], "max_tokens": 4, "temperature": 0, "stream": True}
    body |= {"thinking": {"type": "disabled"}, "logit_bias": {"1": -100}}
    data = json.dumps(body).encode()
    began, first, text = time.perf_counter(), None, ""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
            f"Connection: close\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode()
            + data
        )
        status = await reader.readline()
        if b" 200 " not in status:
            raise ValueError(" ".join((status + await reader.read(2000)).decode(errors="replace").split())[-300:])
        ended = False
        while line := await reader.readline():
            ended = ended or line.startswith(b"data: [DONE]")
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line[6:])
            if "error" in chunk:
                raise ValueError(str(chunk["error"]))
            choice = chunk["choices"][0] if chunk["choices"] else {"delta": {}, "finish_reason": None}
            text += choice["delta"].get("content") or ""
            if first is None and (text or choice["finish_reason"]):
                first = time.perf_counter() - began
        if first is None or not ended:
            raise ValueError("the stream broke off")
        return first, text
    finally:
        writer.close()


async def ask_on(port: int, key: str, known: dict[int, str], stop: asyncio.Event) -> Seen:
    """One question after the other until `stop`; answers are compared with the `known`, or become them."""
    seen, place = Seen(), 0
    while not stop.is_set():
        place = (place + 1) % 8
        try:
            async with asyncio.timeout(60):
                seconds, text = await question(port, key, place)
            seen.first.append(seconds)
            if known.setdefault(place, text) != text:
                seen.faults.append(f"another answer: {text!r} instead of {known[place]!r}")
        except (OSError, ValueError, KeyError, TimeoutError) as error:
            seen.faults.append(f"{type(error).__name__}: {error}"[:200])
        await asyncio.sleep(0.05)
    return seen


# --- an attack -------------------------------------------------------------------------------------------------------


async def under(
    service: Service, name: str | None, keys: dict[str, str], known: dict[int, str], seconds: float, options: Any
) -> dict[str, Any]:
    """The victim beside an attack (None: alone) -> figures of both."""
    stop, peak = asyncio.Event(), {"mib": 0.0, "files": 0}

    async def watch() -> None:
        while not stop.is_set():
            peak["mib"] = max(peak["mib"], service.memory_mib())
            with contextlib.suppress(psutil.Error):
                peak["files"] = max(peak["files"], service.files())
            await asyncio.sleep(0.25)

    asking = asyncio.create_task(ask_on(service.port, keys["victim"], known, stop))
    watching = asyncio.create_task(watch())
    if name is None:
        await asyncio.sleep(seconds)
        told: Any = {}
    else:
        command = [str(Path(__file__).parent / "attacks.py"), name, str(service.port), keys["stranger"]]
        child = await asyncio.create_subprocess_exec(
            sys.executable, *command, str(seconds), str(options.seed), stdout=subprocess.PIPE
        )
        out, _ = await child.communicate()
        told = json.loads(out) if child.returncode == 0 else {f"the attack ended with code {child.returncode}": 1}
    await asyncio.sleep(1)
    stop.set()
    seen = await asking
    await watching
    return {
        "attack": name or "nobody",
        "told": told,
        "peak_mib": peak["mib"],
        "peak_files": peak["files"],
        **seen.figures(),
    }


def settled(service: Service, before: dict[str, Any]) -> dict[str, Any]:
    """Memory and files once they are back, or after `SETTLE_S`."""
    end = time.monotonic() + SETTLE_S
    while True:
        after = {"mib": service.memory_mib(), "files": service.files()}
        if (after["mib"] <= before["mib"] + MEMORY_MIB and after["files"] <= before["files"] + 2) or (
            time.monotonic() > end
        ):
            return after
        time.sleep(0.2)


def verdict(row: dict[str, Any], before: dict[str, Any], alive: bool) -> list[str]:
    """What must not be."""
    wrong = [f"{len(row['faults'])} × {row['faults'][0]}"] if row["faults"] else []
    if row.get("worst_ms", 0) > 1e3 * WORST_S:
        wrong.append(f"the victim waited {row['worst_ms'] / 1e3:.1f} s")
    if row["after"]["mib"] > before["mib"] + MEMORY_MIB:
        wrong.append(f"memory stays {row['after']['mib'] - before['mib']:,.0f} MiB above where it was")
    if row["after"]["files"] > before["files"] + 2:
        wrong.append(f"{row['after']['files'] - before['files']} files stay open")
    return wrong + ([] if alive else ["the service needs a restart"])


def attacked(title: str, service: Service, names: Sequence[str], keys: dict[str, str], options: Any) -> dict[str, Any]:
    """All `names` on one service."""
    seconds = 2.0 if options.quick else options.seconds
    known: dict[int, str] = {}
    asyncio.run(under(service, None, keys, known, 2.0, options))  # what is built on first use is built
    asyncio.run(under(service, "full_prompts", keys, known, 3.0, options))  # and the cache, of its set size, is full
    rows: list[dict[str, Any]] = []
    before = {"mib": service.memory_mib(), "files": service.files()}
    for name in (None, *names):
        row = asyncio.run(under(service, name, keys, known, seconds, options))
        alive = service.process.poll() is None
        row["after"] = settled(service, before) if alive else {"mib": 0.0, "files": 0}
        row["wrong"] = verdict(row, before, alive and asyncio.run(healthy(service.port)))
        rows.append(row)
        console.print(f"{title}: {row['attack']}: {'; '.join(row['wrong']) or 'held'}", highlight=False, markup=False)
        if not alive:
            break
    show(f"{title} (memory before: {before['mib']:,.0f} MiB, files {before['files']})", rows)
    return {"before": before, "rows": rows}


def log_faults(log: Path) -> list[str]:
    """Lines of the log that are no JSON, or too long."""
    faults = []
    for line in log.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            short = not line or (len(line) <= LONGEST_LINE and isinstance(json.loads(line), dict) and line.isascii())
        except ValueError:
            short = False
        if not short:
            faults.append(line[:200])
    return faults


def show(title: str, rows: Sequence[dict[str, Any]]) -> None:
    table = Table(title=title)
    for heading in (
        "attack",
        "victim asked",
        "first token p50 / p95 / worst, ms",
        "peak → after, MiB",
        "files",
        "told",
    ):
        table.add_column(heading, justify="left" if heading in ("attack", "told") else "right")
    for row in rows:
        times = f"{row['p50_ms']:.0f} / {row['p95_ms']:.0f} / {row['worst_ms']:,.0f}" if "p50_ms" in row else "—"
        told = ", ".join(f"{count} × {what}" for what, count in sorted(row["told"].items()))
        memory = f"{row['peak_mib']:,.0f} → {row['after']['mib']:,.0f}"
        files = f"{row['peak_files']} → {row['after']['files']}"
        style = "red" if row["wrong"] else None
        table.add_row(row["attack"], str(row["asked"]), times, memory, files, told, style=style)
    console.print(table)


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each attack")
    parser.add_argument("--only", default=None, help="names of attacks, with commas between")
    options = parser.parse_args()
    quiet_libraries()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the services are ended, too
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    names = options.only.split(",") if options.only else list(ATTACKS)
    if unknown := set(names) - set(ATTACKS):
        parser.error(f"no attack is called {', '.join(sorted(unknown))}; there are {', '.join(ATTACKS)}")
    with tempfile.TemporaryDirectory() as place:
        folder, path = Path(place) / "small", Path(place) / "keys"
        make_folder(folder, options.seed)
        keys = {name: new_key(path, name) for name in ("victim", "stranger")}
        with serving(folder, path) as service:
            found = {"one service": attacked("one service", service, names, keys, options)}
            faults = log_faults(service.log)
        few = [name for name in FEW_FILES if name in names]
        if few:
            with serving(folder, path, files=64) as service:
                found["64 files"] = attacked("64 file descriptors", service, few, keys, options)
        deaf = [name for name in DEAF_LOG if name in names]
        if deaf:
            with serving(folder, path, read_log=False) as service:
                found["unread log"] = attacked("a log that nobody reads", service, deaf, keys, options)
    if faults:
        console.print(f"{len(faults)} lines of the log are no short JSON, such as {faults[0]!r}", markup=False)
    write_results("strangers", options, {"services": found, "log_faults": faults[:5]})
    wrong = [row["attack"] for one in found.values() for row in one["rows"] if row["wrong"]]
    wrong += ["the log"] if faults else []
    console.print(f"Did not hold: {', '.join(wrong)}" if wrong else "Held.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
