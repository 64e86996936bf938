"""The service under load: requests at rising rates with shared prefixes, beside `transformers serve`; then a long run.

A 1M network of random weights (the shape of recipes/r1-cpu.toml) or `--folder` is served by `ziphius serve` and by
`transformers serve` (with and without continuous batching), one after the other, on the same cores as the client. Each
rate sends the same requests at the same random times: one of 8 system messages of about 100 tokens, a short question,
streamed answers of 32 tokens at temperature 0.7. Printed: tokens per second, time to first token and per token after it
(p50, p95), the share of prompt tokens found in the cache, failures. Then `--soak` requests (10,000) go to ours, a third
of them broken off at a random moment: no failure, and no block, sample or open file left over.

    pip install -c constraints.txt -e .[serve] accelerate  # without which the peer loads no model
    python bench/serve.py               # about ten minutes on two slow cores
    python bench/serve.py --quick       # a minute; --only soak, --only load for one half

Writes bench/results/serve-load-MACHINE.json and serve-soak-MACHINE.json.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
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
import torch
from common import SMALL_SHAPE, arguments, console, ended_after, free_port, quiet_libraries, until_ready, write_results
from rich.table import Table

from ziphius.checkpoint import save_model
from ziphius.model.presets import ladder
from ziphius.model.transformer import Transformer
from ziphius.text.learn import train_tokenizer

ANSWER_TOKENS = 32
SENTENCE = "a deep blue whale dives below the cold wave and rises far from every shore while many others wait"
WORDS = SENTENCE.split()
OURS, PEER, PEER_BATCHING = "ziphius serve", "transformers serve", "transformers serve, continuous batching"


@dataclass
class Seen:
    """What one request brought: when it began, each piece of text came, and it ended (seconds of one clock)."""

    began: float
    pieces: list[float] = field(default_factory=list)
    ended: float = 0.0
    tokens: int = 0
    prompt: int = 0
    cached: int = 0
    failure: str | None = None


def make_folder(folder: Path, seed: int) -> None:
    """The network and a tokenizer for it."""
    shape = dict(SMALL_SHAPE)
    draw = random.Random(seed)
    lines = [" ".join(draw.choices(WORDS, k=12)) for _ in range(400)]
    tokenizer = train_tokenizer(lines, shape.pop("vocab_size"))
    model = Transformer(ladder(shape.pop("depth"), tokenizer.vocab_size, **shape))
    model.init_weights(torch.Generator().manual_seed(seed))
    save_model(model, folder)
    tokenizer.save(folder)


@contextlib.contextmanager
def served(side: str, folder: Path, threads: int) -> Iterator[tuple[int, psutil.Process]]:
    """A server in a process of its own, once it answers -> its port and process."""
    port = free_port()
    if side == OURS:
        program = "import sys; from ziphius.cli import main; main()"
        command = [sys.executable, "-c", program, "serve", str(folder), "--port", str(port), "--name", str(folder)]
    else:
        command = ["serve", str(folder), "--port", str(port), "--device", "cpu", "--log-level", "error"]
        command = [str(Path(sys.executable).parent / "transformers"), *command]
        command += ["--continuous-batching"] if side == PEER_BATCHING else []
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        with ended_after(process, 20):
            try:
                asyncio.run(until_ready(process, lambda: _answers(port)))
                yield port, psutil.Process(process.pid)
            except Exception:
                log.seek(0)
                console.print(f"[dim]{log.read().decode(errors='replace')[-1500:]}[/]", markup=False)
                raise


async def _answers(port: int) -> bool:
    with contextlib.suppress(OSError):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()
        return True
    return False


def body_of(draw: random.Random, model: str, tokens: int) -> bytes:
    """One of eight long system messages, and a question of its own."""
    system = " ".join(random.Random(draw.randrange(8)).choices(WORDS, k=100))
    question = " ".join(draw.choices(WORDS, k=6))
    messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    fields = {"model": model, "messages": messages, "stream": True, "max_tokens": tokens, "temperature": 0.7}
    return json.dumps(fields | {"seed": draw.randrange(2**31)}).encode()


async def ask(port: int, body: bytes, leave_after: float | None = None) -> Seen:
    """One streamed request over a connection of its own; with `leave_after`, broken off after so many seconds."""
    seen = Seen(time.perf_counter())
    try:
        async with asyncio.timeout(leave_after if leave_after is not None else 300):
            await _read(port, body, seen)
    except TimeoutError:
        seen.failure = "left" if leave_after is not None else "no answer within 300 s"
    except (OSError, ValueError, KeyError, TypeError) as error:  # whatever another server says instead of a chunk
        seen.failure = f"{type(error).__name__}: {error}"
    seen.ended = time.perf_counter()
    return seen


async def _read(port: int, body: bytes, seen: Seen) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        writer.write(f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        status = await reader.readline()
        if b" 200 " not in status:
            raise ValueError((status + await reader.read(2000)).decode(errors="replace")[:300])
        while line := await reader.readline():
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line[6:])
            if "error" in chunk:
                raise ValueError(str(chunk["error"]))
            delta = chunk["choices"][0]["delta"] if chunk["choices"] else {}
            if delta.get("content") or delta.get("reasoning_content"):
                seen.pieces.append(time.perf_counter())
            if chunk.get("usage"):
                usage = chunk["usage"]
                seen.tokens, seen.prompt = usage["completion_tokens"], usage["prompt_tokens"]
                seen.cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    finally:
        writer.close()


async def at_rate(port: int, model: str, rate: float, seconds: float, seed: int) -> list[Seen]:
    """Requests at random moments, `rate` a second, whether or not earlier ones are answered."""
    draw, asked, end = random.Random(seed), [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        asked.append(asyncio.create_task(ask(port, body_of(draw, model, ANSWER_TOKENS))))
        await asyncio.sleep(draw.expovariate(rate))
    return list(await asyncio.gather(*asked))


async def soak(port: int, model: str, count: int, seed: int) -> list[Seen]:
    """`count` requests, 32 at a time, a third of them broken off at a random moment."""
    draw, seen = random.Random(seed), []

    async def one_after_the_other() -> None:
        while len(seen) < count:
            place = len(seen)
            seen.append(Seen(0.0))
            leave_after = draw.random() * 0.3 if draw.random() < 1 / 3 else None
            seen[place] = await ask(port, body_of(draw, model, draw.randint(1, 16)), leave_after)

    await asyncio.gather(*(one_after_the_other() for _ in range(32)))
    return seen


def summary(rate: float, seen: Sequence[Seen]) -> dict[str, Any]:
    """Figures of one rate; milliseconds where the name says ms."""
    good = [one for one in seen if one.failure is None and one.pieces]
    if len(good) < 2:
        return {
            "rate": rate,
            "requests": len(seen),
            "failed": len(seen) - len(good),
            "why": sorted({str(one.failure) for one in seen})[:3],
        }
    first = [1e3 * (one.pieces[0] - one.began) for one in good]
    each = [1e3 * (one.ended - one.pieces[0]) / (one.tokens - 1) for one in good if one.tokens > 1]
    wall = max(one.ended for one in good) - min(one.began for one in good)
    return {
        "rate": rate,
        "requests": len(seen),
        "failed": len(seen) - len(good),
        "tokens_per_second": sum(one.tokens for one in good) / wall,
        "first_token_ms": _percentiles(first),
        "token_ms": _percentiles(each),
        "hit_share": sum(one.cached for one in good) / max(1, sum(one.prompt for one in good)),
    }


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    cuts = quantiles(values, n=20, method="inclusive")
    return {"p50": cuts[9], "p95": cuts[18]}


def show(title: str, rows: Sequence[dict[str, Any]]) -> None:
    table = Table(title=title)
    for heading in (
        "requests/s",
        "sent",
        "failed",
        "tokens/s",
        "first token p50/p95 ms",
        "a token p50/p95 ms",
        "cache",
    ):
        table.add_column(heading, justify="right")
    for row in rows:
        cells = [f"{row['rate']:g}", str(row["requests"]), str(row["failed"])]
        if "first_token_ms" in row:
            first, each = row["first_token_ms"], row["token_ms"]
            cells += [f"{row['tokens_per_second']:,.0f}", f"{first['p50']:,.0f} / {first['p95']:,.0f}"]
            cells += [f"{each['p50']:.1f} / {each['p95']:.1f}", f"{row['hit_share']:.0%}"]
        table.add_row(*cells)
    console.print(table)


def load(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Every side at every rate, until one keeps nobody's time: then the higher rates are left out for it."""
    rates, seconds = ((2, 8), 3.0) if options.quick else ((2, 4, 8, 16, 32), 8.0)
    found: dict[str, Any] = {}
    for side in (OURS, PEER, PEER_BATCHING):
        try:
            with served(side, folder, options.threads) as (port, _):
                asyncio.run(
                    at_rate(port, str(folder), 2, 2.0, options.seed + 99)
                )  # what is built on first use is built
                found[side] = []
                for rate in rates:
                    row = summary(rate, asyncio.run(at_rate(port, str(folder), rate, seconds, options.seed)))
                    found[side].append(row)
                    if row.get("first_token_ms", {"p50": 1e9})["p50"] > 2000:
                        break
                show(side, found[side])
        except RuntimeError as error:
            console.print(f"{side}: {error}")
            found[side] = str(error)
    return found


def long_run(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The soak, and what the server holds before and after it."""
    count = 300 if options.quick else options.soak
    with served(OURS, folder, options.threads) as (port, process):
        asyncio.run(soak(port, str(folder), 200, options.seed + 1))
        before = {"files": process.num_fds(), "mib": process.memory_info().rss / 2**20}
        began = time.perf_counter()
        seen = asyncio.run(soak(port, str(folder), count, options.seed))
        seconds = time.perf_counter() - began
        time.sleep(1)
        after = {"files": process.num_fds(), "mib": process.memory_info().rss / 2**20}
        held = asyncio.run(_held(port))
    failures = [one.failure for one in seen if one.failure not in (None, "left")]
    left = sum(one.failure == "left" for one in seen)
    console.print(
        f"{count:,} requests in {seconds:,.0f} s, {left:,} broken off, {len(failures)} failed; afterwards "
        f"{held['blocks_used']:.0f} blocks and {held['samples_running'] + held['samples_waiting']:.0f} samples held, "
        f"open files {before['files']} → {after['files']}, memory {before['mib']:,.0f} → {after['mib']:,.0f} MiB"
    )
    return {"requests": count, "seconds": seconds, "broken_off": left, "failures": failures[:5],
            "failed": len(failures), "before": before, "after": after, "held": held}  # fmt: skip


async def _held(port: int) -> dict[str, float]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    lines = (await reader.read()).decode().splitlines()
    values = dict(line.split() for line in lines if line.startswith("ziphius_") and line.count(" ") == 1)
    names = ("blocks_used", "blocks_cached", "samples_running", "samples_waiting")
    return {name: float(values[f"ziphius_{name}"]) for name in names}


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--folder", type=Path, default=None, help="serve this model instead")
    parser.add_argument("--soak", type=int, default=10_000, help="requests of the long run")
    parser.add_argument("--only", choices=("load", "soak"), default=None)
    options = parser.parse_args()
    quiet_libraries()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers are ended, too
    with tempfile.TemporaryDirectory() as place:
        folder = options.folder or Path(place) / "small"
        if options.folder is None:
            make_folder(folder, options.seed)
        kept: dict[str, Any] = {}
        if options.only != "load":
            kept = long_run(folder, options)
            write_results("serve-soak", options, {"soak": kept})
        if options.only != "soak":
            write_results("serve-load", options, {"load": load(folder, options)})
    return 1 if kept and (kept["failed"] or kept["held"]["blocks_used"] or kept["held"]["samples_running"]) else 0


if __name__ == "__main__":
    sys.exit(main())
