"""Sampling speed: new tokens per second of our sampler against transformers' `generate`, as rollouts need them.

A 1M network of random weights (the shape of recipes/r1-cpu.toml) answers prompts of 16 to 64 tokens with 64 new tokens
each, drawn at temperature 1 from the whole distribution; neither side may stop early. Both take the whole batch at
once. The peer's settings are tried first (experts and attention implementation, static cache, continuous batching,
without a stop token), ours too (number format), and the best of each precision class goes into the timed rounds:
batches of 64 and 256 different prompts, 32 prompts with 8 answers each, one thread and all, and a process per core.
`decode` leaves the reading of the prompts out: it is the time beyond that of a run with one new token.

    pip install -c constraints.txt torch        # first: the plain index brings a CUDA build
    pip install -c constraints.txt -e .[bench]
    python bench/rollout.py                     # under 8 minutes on two slow cores
    python bench/rollout.py --quick             # a minute
    python bench/rollout.py --compile           # also the peer with a compiled static cache; minutes more

Writes bench/results/rollout-MACHINE.json.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import torch
from common import (
    SMALL_SHAPE,
    Contestant,
    arguments,
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

from ziphius.checkpoint import save_model
from ziphius.checkpoint.device import load_on
from ziphius.cost.flops import count_parameters
from ziphius.engine.complete import complete
from ziphius.engine.engine import Engine
from ziphius.engine.request import Request
from ziphius.engine.settings import EngineSettings, SamplingSettings
from ziphius.model.formats import Weights
from ziphius.model.presets import ladder
from ziphius.model.transformer import Transformer
from ziphius.train.place import Place, join, leave
from ziphius.train.weights import ReplicatedWeights

WEIGHTS: dict[str, Weights] = {"bf16 weights": "bf16", "int8 weights": "int8"}
CPU = torch.device("cpu")
NEW_TOKENS, PROMPT_LENGTHS = 64, (16, 64)
TARGET = 3.0


@dataclass(frozen=True)
class Load:
    """What is asked for: `prompts` different ones with `samples` answers each."""

    prompts: int
    samples: int = 1

    @property
    def rows(self) -> int:
        return self.prompts * self.samples

    def __str__(self) -> str:
        return f"batch {self.rows}" + (f" as {self.prompts} prompts x {self.samples}" if self.samples > 1 else "")


LOADS = [Load(64), Load(256), Load(32, 8)]
QUICK_LOADS = [Load(16), Load(4, 4)]


@dataclass(frozen=True)
class PeerSetting:
    precision: str
    attention: str = "sdpa"
    experts: str = "grouped_mm"  # "": the network has none
    cache: str = "dynamic"
    stop: str = "min_new_tokens"  # how it is kept from stopping; "none": there is no stop token to look for
    compiled: bool = False


# --- the two sides ---------------------------------------------------------------------------------------------------


class Ours:
    """`ziphius.engine.engine.Engine`. `bf16`, as in reinforcement learning: BF16 working weights and autocast."""

    def __init__(self, folder: Path, precision: str, device: torch.device = CPU) -> None:
        self.precision, self.device = precision, device
        self.model = load_on(folder, device, WEIGHTS.get(precision, "fp32"))
        self._engines: dict[int, Engine] = {}  # by rows: on a GPU one has recorded its steps
        if precision == "bf16":
            ReplicatedWeights(self.model, bf16=True)

    def run(self, prompts: list[list[int]], samples: int, new_tokens: int) -> None:
        settings = SamplingSettings(temperature=1.0, max_new_tokens=new_tokens, ignore_eos=True)
        with ExitStack() as stack:
            if self.precision == "medium":
                torch.set_float32_matmul_precision("medium")
                stack.callback(torch.set_float32_matmul_precision, "highest")
            stack.enter_context(torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"))
            rows = len(prompts) * samples
            if rows not in self._engines:
                size = EngineSettings(max_rows=rows, speculation="off", prefix_cache=False)
                self._engines[rows] = Engine(self.model, None, size)
            found = complete(
                self._engines[rows], [Request(p, settings, samples=samples, stream=False) for p in prompts]
            )
        assert sum(len(c.tokens) for group in found for c in group) == rows * new_tokens


class Peer:
    """transformers' `generate` of the folder's class, or `generate_batch` for continuous batching."""

    def __init__(self, folder: Path, setting: PeerSetting, device: torch.device = CPU) -> None:
        from transformers import AutoModelForCausalLM

        dtype = torch.bfloat16 if setting.precision.startswith("bf16 weights") else torch.float32
        self.setting, self.device = setting, device
        experts = {"experts_implementation": setting.experts} if setting.experts else {}
        self.model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation=setting.attention, **experts
        )
        self.model.eval().to(device)
        if setting.stop == "none":  # else the folder's own would fill the gap
            self.model.generation_config.eos_token_id = None

    def run(self, prompts: list[list[int]], samples: int, new_tokens: int) -> None:
        with ExitStack() as stack:
            if self.setting.precision == "medium":
                torch.set_float32_matmul_precision("medium")
                stack.callback(torch.set_float32_matmul_precision, "highest")
            on = self.setting.precision == "bf16 autocast"
            stack.enter_context(torch.autocast(self.device.type, torch.bfloat16, enabled=on))
            stack.enter_context(torch.no_grad())
            (self._continuous if self.setting.cache == "continuous batching" else self._padded)(
                prompts, samples, new_tokens
            )

    def _settings(self, new_tokens: int, samples: int) -> Any:
        from transformers import CompileConfig, GenerationConfig

        settings = GenerationConfig(
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=new_tokens,
            num_return_sequences=samples,
            pad_token_id=0,
            eos_token_id=None if self.setting.stop == "none" else 1,
            min_new_tokens=None if self.setting.stop == "none" else new_tokens,
            cache_implementation="static" if self.setting.cache == "static" else None,
            disable_compile=not self.setting.compiled,
        )
        if self.setting.compiled:
            compile_config = CompileConfig(mode="default", fullgraph=False)
            compile_config._compile_all_devices = True  # the library's own switch; without it only GPUs compile
            settings.compile_config = compile_config
        return settings

    def _padded(self, prompts: list[list[int]], samples: int, new_tokens: int) -> None:
        longest = max(map(len, prompts))
        tokens = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=self.model.device)
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=self.model.device)
        config = self._settings(new_tokens, samples)
        out = self.model.generate(input_ids=tokens, attention_mask=mask, generation_config=config)
        assert out.shape == (len(prompts) * samples, longest + new_tokens), out.shape

    def _continuous(self, prompts: list[list[int]], samples: int, new_tokens: int) -> None:
        repeated = [prompt for prompt in prompts for _ in range(samples)]
        config = self._settings(new_tokens, 1)
        config.cache_implementation = None
        complaints: list[str] = []
        handler = logging.Handler(logging.ERROR)
        handler.emit = lambda record: complaints.append(record.getMessage()[:200])  # type: ignore[method-assign]
        logging.getLogger("ContinuousBatchingLogger").addHandler(handler)
        found = self.model.generate_batch(repeated, generation_config=config, progress_bar=False)
        made = sum(len(result.generated_tokens) for result in found.values())
        if made != len(repeated) * new_tokens:
            raise RuntimeError(f"made {made} tokens in place of {len(repeated) * new_tokens}; {'; '.join(complaints)}")


def class_of(precision: str, device: torch.device) -> str:
    if precision == "medium":
        return "fp32" if medium_error(Place(device=device)) < 1e-5 else "bf16"
    return {"fp32": "fp32", "int8 weights": "int8"}.get(precision, "bf16")


def make_folder(folder: Path, seed: int) -> Transformer:
    model = Transformer(ladder(**SMALL_SHAPE, num_nextn_predict_layers=0))
    model.init_weights(torch.Generator().manual_seed(seed))
    save_model(model, folder)
    return model


def make_prompts(count: int, seed: int) -> list[list[int]]:
    rng = Random(seed)
    return [
        [rng.randrange(2, SMALL_SHAPE["vocab_size"]) for _ in range(rng.randint(*PROMPT_LENGTHS))] for _ in range(count)
    ]


def contestant(side: Ours | Peer, load: Load, prompts: list[list[int]], new_tokens: int = NEW_TOKENS) -> Contestant:
    ours = isinstance(side, Ours)
    precision = side.precision if isinstance(side, Ours) else side.setting.precision
    settings = {"precision": precision} if isinstance(side, Ours) else asdict(side.setting)
    run: Callable[[], None] = lambda: side.run(prompts, load.samples, new_tokens)
    name, who = ("ziphius", "ours") if ours else ("transformers", "peer")
    return Contestant(name, who, class_of(precision, side.device), run, load.rows * new_tokens, settings)


# --- each side's best settings ---------------------------------------------------------------------------------------


class Trials:
    """Tries settings on one load and remembers what each gave."""

    def __init__(self, folder: Path, load: Load, prompts: list[list[int]], device: torch.device, quick: bool) -> None:
        self.folder, self.load, self.prompts, self.device, self.quick = folder, load, prompts, device, quick
        self.outcomes: list[dict[str, Any]] = []

    def seconds(self, setting: PeerSetting | str) -> float:
        """Best of two runs after a warm-up; infinite where it fails."""
        own = isinstance(setting, str)
        outcome: dict[str, Any] = {"side": "ours", "precision": setting} if own else {"side": "peer", **asdict(setting)}
        try:
            side: Ours | Peer
            if isinstance(setting, str):
                side = Ours(self.folder, setting, self.device)
            else:
                side = Peer(self.folder, setting, self.device)
            entry = contestant(side, self.load, self.prompts)
            entry.run()
            outcome["seconds"] = min(timed(entry.run) for _ in range(1 if self.quick else 2))
        except Exception as error:
            outcome["failed"] = reason(error)
        self.outcomes.append(outcome)
        found = f"{outcome['seconds']:.2f} s" if "seconds" in outcome else outcome["failed"]
        about = ", ".join(str(value) for key, value in outcome.items() if key not in ("seconds", "failed"))
        console.print(f"[dim]tried {about}: {found}[/]", highlight=False)
        gc.collect()
        return outcome.get("seconds", float("inf"))

    def best_peer(self, precision: str) -> tuple[float, PeerSetting]:
        """One option after another, each kept where it helps."""
        start = PeerSetting(precision)
        times = {start: self.seconds(start)}
        changes = [{"experts": "eager"}, {"experts": "batched_mm"}, {"attention": "eager"}]
        for change in [] if self.quick else [*changes, {"cache": "static"}, {"stop": "none"}]:
            leader = min(times, key=lambda setting: times[setting])
            setting = replace(leader, **change)
            times[setting] = self.seconds(setting)
        leader = min(times, key=lambda setting: times[setting])
        return times[leader], leader


def choose(trials: Trials) -> dict[str, dict[str, Any]]:
    """The fastest settings of both sides in each class."""
    chosen: dict[str, dict[str, Any]] = {}
    for side, precisions, measure in (
        ("ours", ("fp32", "medium", "bf16", "bf16 weights"), lambda p: (trials.seconds(p), p)),
        ("peer", ("fp32", "medium", "bf16 autocast", "bf16 weights"), trials.best_peer),
    ):
        for precision in precisions:
            seconds, setting = measure(precision)
            kind = class_of(precision, trials.device)
            held = chosen.setdefault(kind, {}).get(side)
            if seconds < float("inf") and (held is None or seconds < held[0]):
                chosen[kind][side] = (seconds, setting)
    return {kind: {side: setting for side, (_, setting) in sides.items()} for kind, sides in chosen.items()}


# --- the rounds ------------------------------------------------------------------------------------------------------


def run_load(
    load: Load, threads: int, sides: list[Ours | Peer], options: argparse.Namespace
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Whole runs of both sides, and runs of one new token, which is the reading of the prompts."""
    torch.set_num_threads(threads)
    prompts = make_prompts(load.prompts, options.seed)
    whole = [contestant(side, load, prompts) for side in sides]
    reading = [contestant(side, load, prompts, new_tokens=1) for side in sides]
    for entry in [*whole, *reading]:
        entry.run()
    rounds = rounds_within(options.budget, whole, 3, 3 if options.quick else 9)
    take_turns(whole, rounds)
    take_turns(reading, rounds)
    layout = f"one process, {threads} thread{'s' if threads > 1 else ''}"
    show_contestants(f"{load}, {layout}, {rounds} rounds", whole, "new tokens/s")
    rows = []
    for entry, short in zip(whole, reading, strict=True):
        read = 1 / short.rate * load.rows
        decode = load.rows * (NEW_TOKENS - 1) / max(load.rows * NEW_TOKENS / entry.rate - read, 1e-9)
        rows.append(entry.as_dict() | {"prompt_seconds": short.seconds, "decode_per_second": decode})
    about = {"load": str(load), "layout": layout}
    return about | {"contestants": rows}, [about | ratio for ratio in class_ratios(whole, rows)]


def class_ratios(entries: list[Contestant], rows: list[dict[str, Any]] | None = None) -> list[dict[str, Any]]:
    """Best against best in each class, and of all classes."""
    decode = {} if rows is None else {id(e): row["decode_per_second"] for e, row in zip(entries, rows, strict=True)}
    found = []
    for kind in ("fp32", "bf16", "any"):
        among = entries if kind == "any" else [e for e in entries if e.precision == kind]
        ours, peer = (
            max((e for e in among if e.side == s), key=lambda e: e.rate, default=None) for s in ("ours", "peer")
        )
        if ours is None or peer is None:
            continue
        ratio = {"precision": kind, **ratio_of(ours, peer), "target": TARGET}
        if decode:
            ratio["decode_ratio"] = decode[id(ours)] / decode[id(peer)]
        found.append(ratio | {"our_settings": ours.settings, "peer_settings": peer.settings})
    return found


def run_several(
    load: Load, folder: Path, chosen: dict[str, dict[str, Any]], options: argparse.Namespace
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A single-threaded process per core, each with its share of the prompts."""
    about = {"load": str(load), "layout": f"{options.threads} processes, 1 thread each"}
    settings = {
        k: {"ours": c.get("ours"), "peer": asdict(c["peer"]) if "peer" in c else None} for k, c in chosen.items()
    }
    order = {"load": asdict(load), "folder": str(folder), "chosen": settings, "seed": options.seed}
    order["rounds"] = 3 if options.quick else 5
    with tempfile.TemporaryDirectory() as place:
        paths = Path(place) / "order.json", Path(place) / "out.json"
        paths[0].write_text(json.dumps(order))
        problem = run_workers([sys.executable, __file__, "--worker", *map(str, paths)], options.threads, 300)
        if problem is not None:
            console.print(f"{about['layout']}: {problem}")
            return about | {"failed": problem}, []
        rows = json.loads(paths[1].read_text())
    entries = [revive(row) for row in rows]
    show_contestants(f"{load}, {about['layout']}, {order['rounds']} rounds", entries, "new tokens/s")
    return about | {"contestants": rows}, [about | ratio for ratio in class_ratios(entries)]


def worker(order: dict[str, Any], out: Path) -> None:
    """One rank of `run_several`; a round takes as long as its slowest rank."""
    torch.set_num_threads(1)
    place = join("cpu")
    load, folder = Load(**order["load"]), Path(order["folder"])
    prompts = make_prompts(load.prompts, order["seed"])[place.rank :: place.size]
    entries = []
    for sides in order["chosen"].values():
        members: list[Ours | Peer] = [Ours(folder, sides["ours"])] if sides["ours"] else []
        members += [Peer(folder, PeerSetting(**sides["peer"]))] if sides["peer"] else []
        for side in members:
            entry = contestant(side, load, prompts)
            entry.run = _in_step(entry.run, place)
            entries.append(entry)
    take_turns(entries, order["rounds"], warmups=2)
    if place.is_main:
        out.write_text(json.dumps([entry.as_dict() for entry in entries]))
    leave()


def _in_step(run: Callable[[], object], place: Place) -> Callable[[], None]:
    def all_of_them() -> None:
        place.barrier()
        run()
        place.barrier()

    return all_of_them


# --- in a process of their own: continuous batching and torch.compile ------------------------------------------------


def run_apart(
    title: str, changes: dict[str, Any], limit: float, folder: Path, chosen: dict[str, Any], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """The peer with `changes` to its settings against ours, in a process with a time limit: these may break or hang."""
    results = []
    load = (QUICK_LOADS if options.quick else LOADS)[0]
    for kind, sides in chosen.items():
        peer = replace(sides["peer"], **changes)
        order = {"load": asdict(load), "folder": str(folder), "peer": asdict(peer), "ours": sides["ours"]}
        order |= {"seed": options.seed, "threads": options.threads, "device": options.device}
        with tempfile.TemporaryDirectory() as place:
            paths = Path(place) / "order.json", Path(place) / "out.json"
            paths[0].write_text(json.dumps(order))
            problem = run_workers([sys.executable, __file__, "--apart", *map(str, paths)], 1, limit)
            content = {"failed": problem} if problem else json.loads(paths[1].read_text())
        found = content.get("failed") or f"ours is {content['ratio']['ratio']:.2f}x as fast"
        console.print(f"{load}, {kind}, peer with {title}: {found}")
        results.append({"precision": kind, "peer": asdict(peer), **content})
    return results


def apart(order: dict[str, Any], out: Path) -> None:
    """The child of `run_apart`."""
    torch.set_num_threads(order["threads"])
    load, folder = Load(**order["load"]), Path(order["folder"])
    prompts = make_prompts(load.prompts, order["seed"])
    device = join(order["device"]).device
    peer = contestant(Peer(folder, PeerSetting(**order["peer"]), device), load, prompts)
    began = time.perf_counter()
    try:
        for _ in range(2):
            peer.run()
    except Exception as error:
        print(reason(error), file=sys.stderr, flush=True)
        os._exit(1)  # a broken generation may leave a thread behind that never ends
    seconds = time.perf_counter() - began
    entries = [contestant(Ours(folder, order["ours"], device), load, prompts), peer]
    take_turns(entries, 5)
    rows = [entry.as_dict() for entry in entries]
    out.write_text(json.dumps({"first_runs_seconds": seconds, "contestants": rows, "ratio": ratio_of(*entries)}))


# --- main ------------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = arguments(__doc__, device="auto")
    parser.add_argument("--budget", type=float, default=15.0, help="seconds of timed rounds for each load and layout")
    parser.add_argument("--compile", action="store_true", help="also the peer with a compiled static cache")
    parser.add_argument("--compile-limit", type=float, default=900.0, help="seconds before a compile is given up")
    parser.add_argument("--worker", nargs=2, metavar=("ORDER", "OUT"), help=argparse.SUPPRESS)
    parser.add_argument("--apart", nargs=2, metavar=("ORDER", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    quiet_libraries()
    for paths, work in ((options.worker, worker), (options.apart, apart)):
        if paths:
            return work(json.loads(Path(paths[0]).read_text()), Path(paths[1]))

    began = time.perf_counter()
    torch.set_num_threads(options.threads)
    here = place_of(options)
    device = here.device
    limits = machine_limits(here, options.threads, options.quick)
    show_limits(limits)
    loads = QUICK_LOADS if options.quick else LOADS
    results, ratios = [], []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        counts = count_parameters(make_folder(folder, options.seed).config)
        trial_load = loads[0]
        console.rule(f"{counts.total / 1e6:.2f}M parameters; settings tried on {trial_load}")
        trials = Trials(folder, trial_load, make_prompts(trial_load.prompts, options.seed), device, options.quick)
        chosen = choose(trials)
        sides: list[Ours | Peer] = [
            Ours(folder, setting["ours"], device) for setting in chosen.values() if "ours" in setting
        ]
        profiles = {}
        for load in (loads[0],) if options.quick else (loads[0], loads[1]):
            entry = contestant(fastest_of(trials, sides), load, make_prompts(load.prompts, options.seed))
            profiles[str(load)] = rows = profile(entry.run)
            show_profile(
                f"Where our sampling goes, {load}, {entry.settings['precision']}, {options.threads} threads", rows
            )
        sides += [Peer(folder, setting["peer"], device) for setting in chosen.values() if "peer" in setting]
        for load in loads:
            for threads in [options.threads] if here.on_gpu else sorted({1, options.threads}):
                result, found = run_load(load, threads, sides, options)
                results.append(result)
                ratios += found
        torch.set_num_threads(options.threads)
        if options.threads > 1 and not here.on_gpu:
            result, found = run_several(loads[1], folder, chosen, options)
            results.append(result)
            ratios += found
        paged = {"cache": "continuous batching", "attention": "sdpa"}
        continuous = run_apart("continuous batching", paged, 90, folder, chosen, options)
        static = {"cache": "static", "compiled": True}
        compile_results = (
            run_apart("a compiled static cache", static, options.compile_limit, folder, chosen, options)
            if options.compile
            else None
        )
    console.rule("Ratios, ours against the peer's best")
    for r in ratios:
        verdict = "met" if r["ratio"] >= TARGET else "missed"
        decode = f", decode alone {r['decode_ratio']:.2f}x" if "decode_ratio" in r else ""
        console.print(
            f"{r['load']:<28} {r['layout']:<28} {r['precision']:<4} {r['ratio']:.2f}x "
            f"(rounds {r['lowest_round']:.2f} to {r['highest_round']:.2f}{decode}; target {TARGET:g}x {verdict})"
        )
    content = {"limits": limits, "target": TARGET, "ratios": ratios, "trials": trials.outcomes, "loads": results}
    content |= {
        "profiles_ours": profiles,
        "continuous": continuous,
        "compile": compile_results,
        "parameters": counts.total,
    }
    content["settings"] = {"shape": SMALL_SHAPE, "new_tokens": NEW_TOKENS, "prompt_lengths": PROMPT_LENGTHS}
    content["wall_seconds"] = time.perf_counter() - began
    write_results("rollout", options, content)


def fastest_of(trials: Trials, sides: list[Ours | Peer]) -> Ours | Peer:
    """Our side whose settings won the trials."""
    times = {o["precision"]: o["seconds"] for o in trials.outcomes if o["side"] == "ours" and "seconds" in o}
    return min((side for side in sides if isinstance(side, Ours)), key=lambda side: times[side.precision])


if __name__ == "__main__":
    main()
