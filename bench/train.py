"""Training speed: tokens per second of forward, backward, clipping and optimiser step, against transformers.

Both sides train the same DeepSeek-V3-shaped network, from the same weights, on the same batch, without multi-token
prediction (transformers trains none; ours with it is shown beside). The peer's settings are tried first (number
format, attention, experts implementation), and its best of each precision class goes into the timed rounds:
- fp32: fp32 products. bf16: bf16 products, be it by autocast, by bf16 weights (cheaper and coarser: its AdamW has no
  fp32 master) or by fp32 'medium' where this processor computes that in bf16 (its error is measured).
- one process with all threads, and one process per core with gloo (the peer in DistributedDataParallel).

    pip install -c constraints.txt torch        # first: the plain index brings a CUDA build
    pip install -c constraints.txt -e .[bench]
    python bench/train.py                       # under 8 minutes on two slow cores
    python bench/train.py --quick               # a minute
    python bench/train.py --compile             # also the peer under torch.compile; minutes more for each size

Writes bench/results/train-MACHINE.json.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import (
    Contestant,
    arguments,
    best,
    console,
    machine_limits,
    medium_error,
    place_of,
    profile,
    quiet_libraries,
    ratio_of,
    reason,
    revive,
    rounds_within,
    run_workers,
    show_contestants,
    show_limits,
    show_profile,
    take_turns,
    timed,
    write_results,
)

from ziphius.checkpoint import load_model, save_model
from ziphius.cost.data import Data
from ziphius.cost.flops import count_parameters, train_flops_per_token
from ziphius.model.config import ModelConfig
from ziphius.model.presets import ladder
from ziphius.model.transformer import Transformer
from ziphius.train.balance import gates, update_bias
from ziphius.train.batch import Batch
from ziphius.train.losses import next_token_loss
from ziphius.train.optim import Optimizer
from ziphius.train.place import Place, join, leave
from ziphius.train.settings import LossSettings, OptimizerSettings
from ziphius.train.speed import set_speed
from ziphius.train.start import new_model
from ziphius.train.weights import ReplicatedWeights

LR, BETAS, DECAY, CLIP = 1e-5, (0.9, 0.95), 0.1, 1.0
MEMORY_LIMIT = 4 * 2**30  # bytes of gathered expert weights that a peer's setting may hold until its backward
_HOPELESS = 6  # a first step this many times slower than the best setting so far is not tried again
PRECISIONS_OF_PEER = ("fp32", "medium", "bf16 autocast", "bf16 weights")
TARGETS = {"fp32": 1.3, "bf16": 2.0}


@dataclass(frozen=True)
class Size:
    """A rung of the ladder and the batch it is trained on."""

    name: str
    depth: int
    rows: int
    length: int
    changes: dict[str, int] = field(default_factory=dict)  # of the rung's shape

    def config(self, mtp: int = 0) -> ModelConfig:
        return ladder(self.depth, num_nextn_predict_layers=mtp, **self.changes)


SIZES = [
    Size("1M", 4, 16, 128),
    Size("10M", 8, 16, 128),
    Size("30M", 12, 8, 128, {"num_hidden_layers": 8}),
    Size("100M", 15, 4, 128),
]
# On a card: V3's heads and latents, 32 experts of which 4 and a shared one work, batches that fill it
_HEADS = {"qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "kv_lora_rank": 512}
_SMALL = {"hidden_size": 512, "num_attention_heads": 4, "moe_intermediate_size": 192, "intermediate_size": 1536}
_LARGE = {"hidden_size": 1536, "num_attention_heads": 12, "moe_intermediate_size": 384, "intermediate_size": 4608}
_EXPERTS = {"n_routed_experts": 32, "num_experts_per_tok": 4, "max_position_embeddings": 4096}
GPU_SIZES = [
    Size("100M", 8, 32, 2048, {"vocab_size": 16384, **_SMALL, **_HEADS, **_EXPERTS}),
    Size("1B", 16, 8, 4096, {"vocab_size": 32768, **_LARGE, **_HEADS, **_EXPERTS}),
]
QUICK_SIZES = [Size("1M", 4, 4, 64), Size("10M", 8, 2, 64)]


# --- the two sides ---------------------------------------------------------------------------------------------------


class Ours:
    """A full step as `ziphius.train.trainer` makes it: balance loss, clipping and bias update included."""

    def __init__(self, model: Transformer, precision: str, batch: Batch, place: Place) -> None:
        self.model, self.batch, self.place = model, batch, place
        self.bf16, self.medium = precision == "bf16", precision == "medium"
        self.weights = ReplicatedWeights(model, self.bf16)
        set_speed(model, "none", compiled=place.on_gpu and self.bf16)
        settings = OptimizerSettings(lr=LR, beta1=BETAS[0], beta2=BETAS[1], weight_decay=DECAY, clip=CLIP)
        self.optimizer = Optimizer(self.weights, settings)
        self.gates = gates(model)
        self.loss = float("nan")

    def step(self) -> None:
        self.weights.zero()
        norm = self.batch.norm * self.place.size
        with products("medium" if self.medium else "highest"):
            with torch.autocast(self.place.device.type, torch.bfloat16, enabled=self.bf16):
                parts = next_token_loss(self.model, self.batch, LossSettings(), norm)
            parts.total.backward()
        self.weights.collect()
        grad = self.weights.total(self.place.sum_)
        loads = self.place.sum_(torch.stack(parts.loads))
        length = float(self.weights.norm(grad))
        self.optimizer.step(grad.mul_(min(1.0, CLIP / (length + 1e-6))), LR)
        for gate, load in zip(self.gates, loads, strict=True):
            update_bias(gate, load, 1e-3, False)
        self.loss = float(parts.sums["loss"]) / self.batch.norm


class Peer:
    """transformers' DeepseekV3ForCausalLM with fused AdamW and clipping, as its Trainer would step it."""

    def __init__(self, folder: Path, setting: PeerSetting, batch: Batch, place: Place, compiled: bool = False) -> None:
        from transformers import DeepseekV3ForCausalLM

        dtype = torch.bfloat16 if setting.precision == "bf16 weights" else torch.float32
        # Loading to a dtype keeps what the library itself wants in fp32
        self.model = DeepseekV3ForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation=setting.attention, experts_implementation=setting.experts
        )
        self.model.train().to(place.device)
        self.setting, self.tokens = setting, batch.tokens
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LR, betas=BETAS, weight_decay=DECAY, fused=True)
        self.call: Any = self.model
        if place.size > 1:
            self.call = torch.nn.parallel.DistributedDataParallel(self.model)
        if compiled:
            self.call = torch.compile(self.call)
        self.loss = float("nan")

    def step(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        with products("medium" if self.setting.precision == "medium" else "highest"):
            kind, on = self.tokens.device.type, self.setting.precision == "bf16 autocast"
            with torch.autocast(kind, torch.bfloat16, enabled=on):
                loss = self.call(input_ids=self.tokens, labels=self.tokens, use_cache=False).loss
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        self.loss = float(loss.detach())


@dataclass(frozen=True)
class PeerSetting:
    precision: str
    attention: str = "sdpa"
    experts: str = "grouped_mm"


@contextmanager
def products(kind: str) -> Iterator[None]:
    """fp32 products in `kind` ('highest', 'medium') inside the block."""
    torch.set_float32_matmul_precision(kind)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


def class_of(precision: str, place: Place) -> str:
    """The class that a precision is compared in; 'medium' belongs where its measured error puts it."""
    if precision == "medium":
        return "fp32" if medium_error(place) < 1e-5 else "bf16"
    return "fp32" if precision == "fp32" else "bf16"


def make_folder(size: Size, folder: Path, seed: int) -> None:
    """Random weights as a Hugging Face folder that both sides open."""
    save_model(new_model(size.config(), seed, Place()), folder)


def make_batch(size: Size, seed: int, place: Place) -> Batch:
    """This rank's rows of random tokens, on its device."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, size.config().vocab_size, (size.rows, size.length), generator=generator)
    tokens = tokens[place.rank :: place.size].contiguous()
    return place.put(Batch(tokens, torch.ones(tokens.shape)))


def our_contestant(size: Size, folder: Path, precision: str, batch: Batch, place: Place, mtp: int = 0) -> Contestant:
    if mtp:
        model = new_model(size.config(mtp), 0, place)
    else:
        model = load_model(folder, device=place.device)
    side = Ours(model, precision, batch, place)
    name = "ziphius" + (" with MTP" if mtp else "")
    settings: dict[str, Any] = {"precision": precision, "native kernels": "auto"}
    if place.on_gpu:
        settings = {"precision": precision, "torch.compile": True}
    return Contestant(name, "ours", class_of(precision, place), side.step, batch.tokens.numel() * place.size, settings)


def peer_contestant(
    folder: Path, setting: PeerSetting, batch: Batch, place: Place, compiled: bool = False
) -> Contestant:
    side = Peer(folder, setting, batch, place, compiled)
    work = batch.tokens.numel() * place.size
    settings = asdict(setting) | ({"torch.compile": True} if compiled else {})
    return Contestant("transformers", "peer", class_of(setting.precision, place), side.step, work, settings)


# --- the peer's best settings ----------------------------------------------------------------------------------------


def try_peer_settings(
    size: Size, folder: Path, batch: Batch, place: Place, quick: bool
) -> tuple[dict[str, PeerSetting], list[dict[str, Any]]]:
    """The fastest setting of each class, and what every trial gave (seconds a step, or why there is none)."""
    trials: list[dict[str, Any]] = []

    def attempt(setting: PeerSetting) -> float:
        needed = _gathered_bytes(size, setting)
        outcome: dict[str, Any] = asdict(setting)
        if needed > MEMORY_LIMIT:
            outcome["skipped"] = f"would hold {needed / 2**30:.0f} GiB of gathered expert weights"
            seconds = float("inf")
        else:
            try:
                contestant = peer_contestant(folder, setting, batch, place)
                seconds = timed(contestant.run)
                if seconds < _HOPELESS * min((t["seconds"] for t in trials if "seconds" in t), default=seconds):
                    seconds = min(timed(contestant.run) for _ in range(2))
                outcome["seconds"] = seconds
            except Exception as error:
                outcome["failed"], seconds = reason(error), float("inf")
        trials.append(outcome)
        gc.collect()
        return seconds

    fastest: dict[str, tuple[float, PeerSetting]] = {}
    experts_kinds = ("grouped_mm",) if quick or place.on_gpu else ("grouped_mm", "eager", "batched_mm")
    for precision in ("bf16 autocast", "bf16 weights") if place.on_gpu else PRECISIONS_OF_PEER:
        settings = [PeerSetting(precision, experts=experts) for experts in experts_kinds]
        ranked = [(attempt(setting), setting) for setting in settings]
        if not place.on_gpu:  # there nobody would take it
            other = PeerSetting(precision, "eager", min(ranked, key=lambda pair: pair[0])[1].experts)
            ranked.append((attempt(other), other))
        winner = min(ranked, key=lambda pair: pair[0])
        kind = class_of(precision, place)
        if kind not in fastest or winner[0] < fastest[kind][0]:
            fastest[kind] = winner
    return {kind: setting for kind, (seconds, setting) in fastest.items() if seconds < float("inf")}, trials


def _gathered_bytes(size: Size, setting: PeerSetting) -> float:
    """batched_mm copies its experts' weights for every token and keeps the copies of all layers for the backward."""
    if setting.experts != "batched_mm":
        return 0.0
    config = size.config()
    pairs = size.rows * size.length * config.num_experts_per_tok
    layers = sum(config.is_moe_layer(layer) for layer in range(config.num_hidden_layers))
    each = 2 if setting.precision.startswith("bf16") else 4
    return layers * pairs * 3 * config.moe_intermediate_size * config.hidden_size * each


# --- one size --------------------------------------------------------------------------------------------------------


def run_size(size: Size, options: argparse.Namespace, limits: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Trials, timed rounds in one process and in several, and our profile."""
    place = place_of(options)
    make_folder(size, folder, options.seed)
    batch = make_batch(size, options.seed, place)
    counts = count_parameters(size.config())
    console.rule(f"{size.name}: {counts.total / 1e6:.1f}M parameters, {counts.active / 1e6:.1f}M active, "
                 f"batch {size.rows} x {size.length}")  # fmt: skip
    agreement = check_same_network(folder, batch, place)
    chosen, trials = try_peer_settings(size, folder, batch, place, options.quick)
    show_trials(trials)

    precisions = ("bf16",) if place.on_gpu else ("fp32", "medium", "bf16")  # nobody trains in fp32 on a GPU
    makers = [partial(our_contestant, size, folder, precision, batch, place) for precision in precisions]
    makers += [partial(peer_contestant, folder, setting, batch, place) for setting in chosen.values()]
    if not options.quick and not place.on_gpu:
        makers.append(partial(our_contestant, size, folder, "bf16", batch, place, mtp=1))
    contestants = [after_first_step(make, place) for make in makers]
    low, high = (3, 3) if options.quick else (5, 15)
    rounds = rounds_within(options.budget, contestants, low, high)
    take_turns(contestants, rounds)
    one = place.device_name if place.on_gpu else f"one process, {options.threads} threads"
    show_contestants(f"{size.name}, {one}, {rounds} rounds", contestants, "tokens/s")
    ratios = [r | {"layout": one} for r in class_ratios(contestants)]

    fastest = best(contestants, "ours", "bf16")
    assert fastest is not None
    rows = profile(fastest.run)
    show_profile(f"Where our {fastest.settings['precision']} step goes, {size.name}, {one}", rows)
    flops = train_flops_per_token(size.config(), size.length) * fastest.rate
    peak = limits["gemm_gflops"][str(options.threads)]["bf16"] * 1e9
    console.print(
        f"Our bf16 step does {flops / 1e9:.0f} GFLOP/s (causal, without the input embedding): {flops / peak:.1%} of "
        "the measured bf16 GEMM speed."
    )
    sheet = data_sheet_peak(place)
    if sheet:
        console.print(f"MFU {flops / sheet:.1%} of the data sheet's dense bf16 peak, {sheet / 1e12:.0f} TFLOP/s.")
    result = {
        "size": asdict(size),
        "parameters": counts.total,
        "active_parameters": counts.active,
        "first_loss": agreement,
        "peer_trials": trials,
        "one_process": [c.as_dict() for c in contestants],
        "profile_ours": rows,
        "model_gflops_ours_bf16": flops / 1e9,
        "share_of_bf16_gemm": flops / peak,
        "mfu_of_data_sheet": flops / sheet if sheet else None,
    }
    del contestants, fastest
    gc.collect()
    if options.threads > 1 and not place.on_gpu:
        several, extra = run_several(size, folder, chosen, rounds, options)
        result["several_processes"] = several
        ratios += extra
    if options.compile:
        result["compile"] = run_compile(size, folder, chosen, options)
    result["ratios"] = ratios
    return result


def after_first_step(make: Callable[[], Contestant], place: Place) -> Contestant:
    """A contestant that has made its first step; on a card with the memory that it holds at most."""
    before = torch.cuda.memory_allocated(place.device) if place.on_gpu else 0
    place.forget_peak()
    contestant = make()
    contestant.run()
    if place.on_gpu:
        contestant.settings["peak GiB"] = round(place.peak_memory_gib() - before / 2**30, 1)
    return contestant


def data_sheet_peak(place: Place) -> float | None:
    """Dense BF16 FLOP/s that the maker states for the card; None where it is not among those known."""
    name = place.device_name.lower().replace("-", " ").split()
    known = [row.bf16_tflops for key, row in Data().accelerators.items() if key in name]
    return known[0] * 1e12 if known else None


def check_same_network(folder: Path, batch: Batch, place: Place) -> dict[str, float]:
    """fp32 losses of both sides on the first row; raises when they are not the same network."""
    batch = Batch(batch.tokens[:1], batch.weights[:1])
    losses = {}
    for name in ("ours", "peer"):  # one after the other: two of them may be more than a card holds
        ours = name == "ours"
        side = (
            Ours(load_model(folder, device=place.device), "fp32", batch, place)
            if ours
            else Peer(folder, PeerSetting("fp32"), batch, place)
        )
        side.step()
        losses[name] = side.loss
        del side
        gc.collect()
    # Ours divides by all weights, of which the last of each row's has no next token
    losses["ours"] *= batch.tokens.shape[1] / (batch.tokens.shape[1] - 1)
    if abs(losses["ours"] - losses["peer"]) > 1e-3 * abs(losses["peer"]):
        raise SystemExit(f"the two sides do not compute the same loss: {losses}")
    console.print(f"First loss, fp32: ours {losses['ours']:.5f}, peer {losses['peer']:.5f}")
    return losses


def show_trials(trials: list[dict[str, Any]]) -> None:
    for trial in trials:
        outcome = (
            f"{trial['seconds'] * 1e3:.0f} ms" if "seconds" in trial else trial.get("failed", trial.get("skipped"))
        )
        console.print(f"[dim]tried peer: {trial['precision']}, {trial['attention']}, {trial['experts']}: {outcome}[/]")


def class_ratios(contestants: list[Contestant]) -> list[dict[str, Any]]:
    """Our best against the peer's best in each class, MTP left out."""
    ratios = []
    for kind in ("fp32", "bf16"):
        ours = best([c for c in contestants if "MTP" not in c.name], "ours", kind)
        peer = best(contestants, "peer", kind)
        if ours and peer:
            settings = {"our_settings": ours.settings, "peer_settings": peer.settings}
            ratios.append({"precision": kind, **ratio_of(ours, peer), **settings, "target": TARGETS[kind]})
    return ratios


# --- several processes, and torch.compile ----------------------------------------------------------------------------


def run_several(
    size: Size, folder: Path, chosen: dict[str, PeerSetting], rounds: int, options: argparse.Namespace
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One single-threaded process per core, data-parallel over gloo."""
    layout = f"{options.threads} processes, 1 thread each, gloo"
    peers = {kind: asdict(setting) for kind, setting in chosen.items()}
    order = {"size": asdict(size), "folder": str(folder), "peers": peers, "rounds": rounds, "seed": options.seed}
    content, problem = _child("--worker", order, options.threads, 300)
    if problem is not None:
        console.print(f"{layout}: {problem}")
        return {"layout": layout, "failed": problem}, []
    contestants = [revive(row) for row in content]
    show_contestants(f"{size.name}, {layout}, {rounds} rounds", contestants, "tokens/s")
    return {"layout": layout, "contestants": content}, [r | {"layout": layout} for r in class_ratios(contestants)]


def worker(order: dict[str, Any], out: Path) -> None:
    """One rank of `run_several`."""
    torch.set_num_threads(1)
    place = join("cpu")
    size, folder = Size(**order["size"]), Path(order["folder"])
    batch = make_batch(size, order["seed"], place)
    contestants = [our_contestant(size, folder, precision, batch, place) for precision in ("fp32", "bf16")]
    contestants += [peer_contestant(folder, PeerSetting(**s), batch, place) for s in order["peers"].values()]
    for contestant in contestants:
        contestant.run = _in_step(contestant.run, place)
    take_turns(contestants, order["rounds"], warmups=2)
    if place.is_main:
        out.write_text(json.dumps([c.as_dict() for c in contestants]))
    leave()


def _in_step(run: Any, place: Place) -> Any:
    def both() -> None:
        place.barrier()
        run()
        place.barrier()

    return both


def run_compile(
    size: Size, folder: Path, chosen: dict[str, PeerSetting], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """The peer under torch.compile against ours, a process each class with a time limit."""
    results = []
    for kind, setting in chosen.items():
        order = {"size": asdict(size), "folder": str(folder), "kind": kind, "peer": asdict(setting)}
        order |= {"seed": options.seed, "threads": options.threads, "budget": options.budget}
        order["device"] = options.device
        content, problem = _child("--compiled", order, 1, options.compile_limit)
        if problem is not None:
            console.print(f"{size.name} {kind}, peer under torch.compile: {problem}")
            results.append({"precision": kind, "peer": asdict(setting), "failed": problem})
            continue
        contestants = [revive(row) for row in content["contestants"]]
        title = f"{size.name}, peer under torch.compile (after {content['compile_seconds']:.0f} s of compiling)"
        show_contestants(title, contestants, "tokens/s")
        results.append({"precision": kind, **content, "ratios": class_ratios(contestants)})
    return results


def compiled(order: dict[str, Any], out: Path) -> None:
    """The child of `run_compile`."""
    torch.set_num_threads(order["threads"])
    size, folder = Size(**order["size"]), Path(order["folder"])
    place = join(order["device"])
    batch = make_batch(size, order["seed"], place)
    peer = peer_contestant(folder, PeerSetting(**order["peer"]), batch, place, compiled=True)
    began = time.perf_counter()
    for _ in range(3):
        peer.run()
    compile_seconds = time.perf_counter() - began
    contestants = [our_contestant(size, folder, order["kind"], batch, place), peer]
    contestants[0].run()
    take_turns(contestants, rounds_within(order["budget"] / 2, contestants, 5, 15))
    rows = [c.as_dict() for c in contestants]
    out.write_text(json.dumps({"compile_seconds": compile_seconds, "contestants": rows}))


def _child(flag: str, order: dict[str, Any], count: int, limit: float) -> tuple[Any, str | None]:
    """Run this script again in `count` processes; what rank 0 wrote, or what went wrong."""
    with tempfile.TemporaryDirectory() as folder:
        paths = Path(folder) / "order.json", Path(folder) / "out.json"
        paths[0].write_text(json.dumps(order))
        problem = run_workers([sys.executable, __file__, flag, *map(str, paths)], count, limit)
        return (None, problem) if problem else (json.loads(paths[1].read_text()), None)


# --- main ------------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = arguments(__doc__, device="auto")
    parser.add_argument(
        "--sizes", nargs="+", default=None, help="of 1M 10M 30M 100M, on a GPU of 100M 1B (default: all)"
    )
    parser.add_argument("--budget", type=float, default=30.0, help="seconds of timed rounds a size and layout")
    parser.add_argument("--compile", action="store_true", help="also the peer under torch.compile")
    parser.add_argument("--compile-limit", type=float, default=900.0, help="seconds before a compile is given up")
    parser.add_argument("--worker", nargs=2, metavar=("ORDER", "OUT"), help=argparse.SUPPRESS)
    parser.add_argument("--compiled", nargs=2, metavar=("ORDER", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    quiet_libraries()
    for paths, work in ((options.worker, worker), (options.compiled, compiled)):
        if paths:
            return work(json.loads(Path(paths[0]).read_text()), Path(paths[1]))

    torch.set_num_threads(options.threads)
    began = time.perf_counter()
    place = place_of(options)
    limits = machine_limits(place, options.threads, options.quick)
    show_limits(limits)
    results, ratios = [], []
    for size in QUICK_SIZES if options.quick else GPU_SIZES if place.on_gpu else SIZES:
        if options.sizes and size.name not in options.sizes:
            continue
        with tempfile.TemporaryDirectory() as folder:
            result = run_size(size, options, limits, Path(folder))
        results.append(result)
        ratios += [{"size": size.name, **ratio} for ratio in result["ratios"]]
    console.rule("Ratios, ours against the peer's best of the same precision class")
    for r in ratios:
        verdict = "met" if r["ratio"] >= r["target"] else "missed"
        console.print(
            f"{r['size']:>5}  {r['precision']}  {r['layout']:<34} {r['ratio']:.2f}x  "
            f"(rounds {r['lowest_round']:.2f} to {r['highest_round']:.2f}; target {r['target']}x {verdict})"
        )
    content = {"limits": limits, "targets": TARGETS, "ratios": ratios, "sizes": results}
    content["settings"] = {"lr": LR, "betas": BETAS, "weight_decay": DECAY, "clip": CLIP, "threads": options.threads}
    content["wall_seconds"] = time.perf_counter() - began
    write_results("train", options, content)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))
    main()
