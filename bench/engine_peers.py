"""The engines of other projects beside ours, each in its own environment, behind `bench/peer.py`."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from random import Random
from threading import Timer
from typing import IO, Any, cast

import psutil
import torch
from common import Contestant, console, ratio_of, show_contestants, timed

from ziphius.checkpoint import save_model
from ziphius.checkpoint.device import load_on
from ziphius.checkpoint.gguf import WeightType, write_gguf
from ziphius.engine.complete import complete
from ziphius.engine.engine import Engine
from ziphius.engine.request import Request
from ziphius.engine.settings import EngineSettings, SamplingSettings
from ziphius.model.config import ModelConfig
from ziphius.model.formats import Weights
from ziphius.model.presets import ladder
from ziphius.model.transformer import Transformer

PROMPT_LENGTH, NEW_TOKENS, BATCHES = 16, 64, (1, 16, 64)
READY_SECONDS = 420  # vLLM compiles on its first start
SETTLE_SECONDS = 0.4  # idle threads of the side that went before spin so long
TARGETS = {"vllm": {1: 3.0, 16: 1.3, 64: 1.3}, "llama.cpp": {1: 1.0, 16: 2.0, 64: 2.0}}
RACES = {"vllm": ("bf16",), "llama.cpp": ("fp32", "bf16")}  # what each peer is good at
FILE_TYPES: dict[str, WeightType] = {"exact": "f32", "fp32": "f32", "bf16": "bf16"}


def wide_heads() -> ModelConfig:
    """Three layers of width 256, 8 experts, and the head size of 576 that vLLM's latent attention takes.

    Weights of about unit gain keep the likeliest token clear of the next, so that rounding seldom swaps them.
    """
    heads = {"num_attention_heads": 4, "qk_nope_head_dim": 64, "v_head_dim": 64}
    latent = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "initializer_range": 0.06}
    return ladder(8, num_hidden_layers=3, num_nextn_predict_layers=0, **heads, **latent)


class Behind:
    """A peer in processes of its own, which stand still while others have their turn."""

    def __init__(self, name: str, process: subprocess.Popen[str], version: str) -> None:
        self.name, self.about, self._process = name, {"version": version}, process

    def run(self, prompts: list[list[int]], new_tokens: int, greedy: bool = False) -> list[list[int]]:
        """The new tokens of each prompt. Raises RuntimeError when the process has ended."""
        order = {"prompts": prompts, "new_tokens": new_tokens, "greedy": greedy}
        self.go_on()
        cast(IO[str], self._process.stdin).write(json.dumps(order) + "\n")
        cast(IO[str], self._process.stdin).flush()
        line = cast(IO[str], self._process.stdout).readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with code {self._process.wait()}")
        self.stand_still()
        return json.loads(line)["tokens"]

    def stand_still(self) -> None:
        for process in self._family():
            process.suspend()

    def go_on(self) -> None:
        for process in self._family():
            process.resume()

    def _family(self) -> list[psutil.Process]:
        if self._process.poll() is not None:
            return []
        root = psutil.Process(self._process.pid)
        return [root, *root.children(recursive=True)]


@contextmanager
def start(name: str, python: Path, model: Path, dtype: str, threads: int, rows: int, length: int) -> Iterator[Behind]:
    """A peer that has loaded `model`. Raises RuntimeError with its last line when it cannot."""
    kind = {"vllm": "vllm", "llama.cpp": "llama"}[name]
    numbers = map(str, (threads, rows, length))
    command = [str(python), str(Path(__file__).with_name("peer.py")), kind, str(model), dtype, *numbers]
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        too_long = Timer(READY_SECONDS, process.kill)
        too_long.start()
        try:
            line = cast(IO[str], process.stdout).readline()
            too_long.cancel()
            said = json.loads(line) if line else {"failed": f"it ended with code {process.wait()}"}
            if "failed" in said:
                log.seek(0)
                last = [text for text in log.read().splitlines() if text.strip()][-1:]
                raise RuntimeError(f"{name} did not start: {said['failed']} {' '.join(last)[:300]}")
            peer = Behind(name, process, said["ready"])
            try:
                yield peer
            finally:  # what stands still cannot notice that its parent is gone
                peer.go_on()
        finally:
            too_long.cancel()
            process.kill()


class Kept:
    """Our engine, made once, as the peers' are."""

    def __init__(self, folder: Path, weights: Weights, rows: int) -> None:
        model = load_on(folder, torch.device("cpu"), weights)
        settings = EngineSettings(max_rows=rows, speculation="off", prefix_cache=False)
        self.engine = Engine(model, None, settings)

    def run(self, prompts: list[list[int]], new_tokens: int, greedy: bool = False) -> list[list[int]]:
        settings = SamplingSettings(temperature=0.0 if greedy else 1.0, max_new_tokens=new_tokens, ignore_eos=True)
        found = complete(self.engine, [Request(prompt, settings, stream=False) for prompt in prompts])
        return [samples[0].tokens for samples in found]


def same_tokens(ours: Kept, peer: Behind, dtype: str, prompts: list[list[int]]) -> dict[str, Any]:
    """How many greedy answers are equal, and how many tokens stand before the first that differs in each."""
    pairs = list(zip(ours.run(prompts, NEW_TOKENS, True), peer.run(prompts, NEW_TOKENS, True), strict=True))
    agreed, equal = sum(_common(a, b) for a, b in pairs), sum(a == b for a, b in pairs)
    asked = len(prompts) * NEW_TOKENS
    console.print(
        f"  greedy, {dtype}: {equal} of {len(prompts)} answers equal {peer.name}'s, {agreed} of {asked} tokens before "
        "the first difference"
    )
    return {
        "peer": peer.name,
        "dtype": dtype,
        "answers": len(prompts),
        "equal": equal,
        "tokens": asked,
        "agreed": agreed,
    }


def _common(a: list[int], b: list[int]) -> int:
    return next((place for place, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def run_peers(pythons: dict[str, Path], threads: int, rounds: int, seed: int) -> dict[str, Any]:
    """Ours against each peer that `pythons` has an interpreter for: greedy tokens, then each batch in turns."""
    config, rng = wide_heads(), Random(seed)
    console.rule("Other engines: 3 layers of width 256, 8 experts, head size 576")
    prompts = [[rng.randrange(2, config.vocab_size) for _ in range(PROMPT_LENGTH)] for _ in range(max(BATCHES))]
    content: dict[str, Any] = {"config": config.to_hf(), "greedy": [], "failed": []}
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        folder = Path(place) / "model"
        model = Transformer(config)
        model.init_weights(torch.Generator().manual_seed(seed))
        save_model(model, folder)
        ours = {"fp32": Kept(folder, "fp32", len(prompts)), "bf16": Kept(folder, "bf16", len(prompts))}
        peers: list[tuple[Behind, str]] = []
        for name, python in pythons.items():
            for dtype in ("exact", *RACES[name]):
                path = folder
                if name == "llama.cpp":
                    path = Path(place) / f"{dtype}.gguf"
                    write_gguf(folder, path, FILE_TYPES[dtype])
                length = PROMPT_LENGTH + NEW_TOKENS
                with ExitStack() as own:
                    try:
                        peer = own.enter_context(start(name, python, path, dtype, threads, len(prompts), length))
                        ours_of = ours["fp32" if dtype == "exact" else dtype]
                        content["greedy"].append(same_tokens(ours_of, peer, dtype, prompts[:16]))
                    except RuntimeError as error:
                        console.print(f"[red]{error}[/]", highlight=False)
                        content["failed"].append(str(error))
                        continue
                    if dtype != "exact":
                        peers.append((peer, dtype))
                        stack.push(own.pop_all())
        return content | _race(ours, peers, prompts, rounds)


def _race(
    ours: dict[str, Kept], peers: list[tuple[Behind, str]], prompts: list[list[int]], rounds: int
) -> dict[str, Any]:
    """Every batch with all of them in turns, and the ratios within each dtype."""
    batches, ratios = [], []
    for batch in BATCHES:
        work = batch * NEW_TOKENS
        entries = [
            Contestant("ziphius", "ours", dtype, partial(kept.run, prompts[:batch], NEW_TOKENS), work)
            for dtype, kept in ours.items()
        ]
        entries += [
            Contestant(peer.name, "peer", dtype, partial(peer.run, prompts[:batch], NEW_TOKENS), work, peer.about)
            for peer, dtype in peers
        ]
        _take_quiet_turns(entries, rounds)
        show_contestants(f"batch {batch}, {rounds} rounds", entries, "new tokens/s")
        batches.append({"batch": batch, "contestants": [entry.as_dict() for entry in entries]})
        mine = {entry.precision: entry for entry in entries if entry.side == "ours"}
        ratios += [
            {"batch": batch, "precision": entry.precision, "target": TARGETS[entry.name][batch]}
            | ratio_of(mine[entry.precision], entry)
            for entry in entries
            if entry.side == "peer"
        ]
    return {"batches": batches, "ratios": ratios}


def _take_quiet_turns(entries: list[Contestant], rounds: int) -> None:
    """As `common.take_turns`, with a pause before each run in which the threads of the one before come to rest."""
    for entry in entries:
        entry.run()
    for number in range(rounds):
        shift = number % len(entries)
        for entry in [*entries[shift:], *entries[:shift]]:
            time.sleep(SETTLE_SECONDS)
            entry.seconds.append(timed(entry.run))
