"""The engines of other projects beside ours, each in its own environment, behind `bench/peer.py`."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random
from threading import Timer
from typing import IO, Any, cast

import torch
from common import Contestant, console, ratio_of, show_contestants
from rollout import Load, Ours, contestant

import ziphius
from ziphius.checkpoint import load_model, save_model
from ziphius.checkpoint.gguf import WeightType, write_gguf
from ziphius.model.config import ModelConfig
from ziphius.model.presets import ladder
from ziphius.model.transformer import Transformer

PROMPT_LENGTH, NEW_TOKENS = 16, 64
READY_SECONDS = 420  # vLLM compiles on its first start
SETTLE_SECONDS = 0.4  # idle threads of the side that went before spin so long
TARGETS = {"vllm": {1: 3.0, 16: 1.3, 64: 1.3}, "llama.cpp": {1: 1.0, 16: 2.0, 64: 2.0}}
FILE_TYPES: dict[str, WeightType] = {"fp32": "f32", "bf16": "bf16"}
WEIGHTS = {"fp32": "fp32", "bf16": "bf16 weights"}  # our side's name of it


def wide_heads() -> ModelConfig:
    """Three layers of width 256, 8 experts, and the head size of 576 that vLLM's latent attention takes.

    Weights of about unit gain keep the likeliest token clear of the next, so that rounding seldom swaps them.
    """
    heads = {"num_attention_heads": 4, "qk_nope_head_dim": 64, "v_head_dim": 64}
    latent = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "initializer_range": 0.06}
    return ladder(8, num_hidden_layers=3, num_nextn_predict_layers=0, **heads, **latent)


class Behind:
    """A peer in a process of its own."""

    def __init__(self, name: str, process: subprocess.Popen[str], version: str) -> None:
        self.name, self.version, self._process = name, version, process

    def run(self, prompts: list[list[int]], new_tokens: int, greedy: bool = False) -> list[list[int]]:
        """The new tokens of each prompt. Raises RuntimeError when the process has ended."""
        order = {"prompts": prompts, "new_tokens": new_tokens, "greedy": greedy}
        cast(IO[str], self._process.stdin).write(json.dumps(order) + "\n")
        cast(IO[str], self._process.stdin).flush()
        line = cast(IO[str], self._process.stdout).readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with code {self._process.wait()}")
        return json.loads(line)["tokens"]


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
            yield Behind(name, process, said["ready"])
        finally:
            too_long.cancel()
            process.kill()


def same_tokens(peer: Behind, folder: Path, dtype: str, prompts: list[list[int]]) -> dict[str, Any]:
    """How many greedy tokens agree, over how many prompts, until the first that differs in each."""
    model = load_model(folder, {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype])
    ours = ziphius.generate(model, prompts, max_new_tokens=NEW_TOKENS, temperature=0.0)
    ours_tokens = [completion.tokens for completion in ours]  # type: ignore[union-attr]
    theirs = peer.run(prompts, NEW_TOKENS, greedy=True)
    agreed = sum(_common(a, b) for a, b in zip(ours_tokens, theirs, strict=True))
    whole = sum(a == b[: len(a)] for a, b in zip(ours_tokens, theirs, strict=True))
    asked = sum(map(len, ours_tokens))
    console.print(
        f"  greedy, {dtype}: {whole} of {len(prompts)} answers equal {peer.name}'s, {agreed} of {asked} tokens before "
        "the first difference"
    )
    return {
        "peer": peer.name,
        "dtype": dtype,
        "answers": len(prompts),
        "equal": whole,
        "tokens": asked,
        "agreed": agreed,
    }


def _common(a: list[int], b: list[int]) -> int:
    return next((place for place, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def run_peers(pythons: dict[str, Path], threads: int, rounds: int, seed: int) -> dict[str, Any]:
    """Ours against each peer that `pythons` names an interpreter for: batch 1, 16 and 64, in turns."""
    config, rng = wide_heads(), Random(seed)
    console.rule("Other engines: 3 layers of width 256, 8 experts, head size 576")
    prompts = [[rng.randrange(2, config.vocab_size) for _ in range(PROMPT_LENGTH)] for _ in range(64)]
    content: dict[str, Any] = {"config": config.to_hf(), "batches": [], "ratios": [], "greedy": [], "versions": {}}
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        folder = Path(place) / "model"
        model = Transformer(config)
        model.init_weights(torch.Generator().manual_seed(seed))
        save_model(model, folder)
        peers: list[tuple[Behind, str]] = []
        for name, python in pythons.items():
            for dtype in ("bf16",) if name == "vllm" else ("fp32", "bf16"):
                model_path = folder
                if name == "llama.cpp":
                    model_path = Path(place) / f"{dtype}.gguf"
                    write_gguf(folder, model_path, FILE_TYPES[dtype])
                try:
                    length = PROMPT_LENGTH + NEW_TOKENS
                    peer = stack.enter_context(start(name, python, model_path, dtype, threads, len(prompts), length))
                except RuntimeError as error:
                    console.print(f"[red]{error}[/]", highlight=False)
                    content.setdefault("failed", []).append(str(error))
                    continue
                content["versions"][name] = peer.version
                peers.append((peer, dtype))
                content["greedy"].append(same_tokens(peer, folder, dtype, prompts[:16]))
        dtypes = sorted({dtype for _, dtype in peers}, reverse=True)
        ours = {dtype: Ours(folder, WEIGHTS[dtype]) for dtype in dtypes}
        for batch in (1, 16, 64):
            entries = [contestant(ours[dtype], Load(batch), prompts[:batch], NEW_TOKENS) for dtype in dtypes]
            for peer, dtype in peers:
                settings = {"precision": dtype, "version": peer.version}
                run: Callable[[], object] = lambda peer=peer: peer.run(prompts[:batch], NEW_TOKENS)  # noqa: B023
                entries.append(Contestant(peer.name, "peer", dtype, run, batch * NEW_TOKENS, settings))
            _take_quiet_turns(entries, rounds)
            show_contestants(f"batch {batch}, {rounds} rounds", entries, "new tokens/s")
            content["batches"].append({"batch": batch, "contestants": [entry.as_dict() for entry in entries]})
            mine = {entry.precision: entry for entry in entries if entry.side == "ours"}
            for entry in entries:
                if entry.side == "peer":
                    about = {"batch": batch, "precision": entry.precision, "target": TARGETS[entry.name][batch]}
                    content["ratios"].append(about | ratio_of(mine[entry.precision], entry))
    return content


def _take_quiet_turns(entries: list[Contestant], rounds: int) -> None:
    """As `common.take_turns`, with a pause before each run in which the threads of the one before come to rest."""
    for entry in entries:
        entry.run()
    for number in range(rounds):
        shift = number % len(entries)
        for entry in [*entries[shift:], *entries[:shift]]:
            time.sleep(SETTLE_SECONDS)
            began = time.perf_counter()
            entry.run()
            entry.seconds.append(time.perf_counter() - began)
