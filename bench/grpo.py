"""Reinforcement learning: seconds per GRPO step against TRL's GRPOTrainer, and both learning curves.

Both sides start from the same folder and make the same step: 32 reasoning-gym `leg_counting` questions in our chat
template, 8 answers each (256 rollouts), rewards by our rules, one update (loss normalised over tokens, no KL term, the
same optimiser and learning rate). Without multi-token prediction, as TRL trains none. For timing every answer has
80 tokens, neither side may stop early, and rewards are a hash of the text, so that every group has something to learn
from. TRL's settings are tried first (number format, size of micro-batches, experts, attention, cache) and its best of
each precision class takes turns with ours inside one process: after each TRL step comes one of ours.
Also in two processes of one thread each.

    pip install -c constraints.txt torch        # first: the plain index brings a CUDA build
    pip install -c constraints.txt -e .[bench]
    python bench/grpo.py                        # under 8 minutes on two slow cores
    python bench/grpo.py --quick                # a minute or two
    python bench/grpo.py --curve runs/r1-cpu/stages/03-cold_start --minutes 3

`--curve FOLDER` trains both from FOLDER (a checkpoint with its tokenizer) for that many minutes each, real rewards,
answers of their own length; ours catches up with TRL's clock after each of TRL's steps. Writes grpo-curve-MACHINE.json
and .png; otherwise grpo-MACHINE.json, in bench/results.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from random import Random
from statistics import fmean, median
from typing import Any

import torch
from common import (
    SMALL_SHAPE,
    Contestant,
    arguments,
    console,
    machine_limits,
    nothing,
    place_of,
    profile,
    quiet_libraries,
    ratio_of,
    reason,
    result_path,
    run_workers,
    show_contestants,
    show_limits,
    show_profile,
    write_results,
)

from ziphius.checkpoint import load_config, load_model, save_model
from ziphius.model.presets import ladder
from ziphius.model.transformer import Transformer
from ziphius.reason.grpo import GRPOSource
from ziphius.reason.prompts import prompt_tokens
from ziphius.reason.rewards import RewardWeights, score
from ziphius.reason.rollout import Group, Rollout, TaskMix
from ziphius.reason.settings import GRPOSettings
from ziphius.tasks.registry import make_family
from ziphius.text.learn import train_tokenizer
from ziphius.text.tokenizer import Tokenizer
from ziphius.train.losses import policy_loss
from ziphius.train.place import Place, join, leave
from ziphius.train.schedule import Schedule
from ziphius.train.settings import LossSettings, OptimizerSettings, PolicySettings, TrainSettings
from ziphius.train.trainer import Trainer

TARGET = 3.0
TASK = {"min_animals": 3, "max_animals": 5, "min_instances": 1, "max_instances": 2}  # as in recipes/r1-cpu.toml
WEIGHTS = RewardWeights(format=0.2)
LR, BETAS, EPS, CLIP, WARMUP = 5e-4, (0.9, 0.99), 1e-8, 1.0, 5
CLIP_LOW, CLIP_HIGH = 0.2, 0.28


@dataclass(frozen=True)
class Work:
    """The size of a step. `forced`: all answers have `new_tokens` tokens, rewards are noise."""

    prompts: int = 32
    group: int = 8
    new_tokens: int = 80
    forced: bool = True
    seed: int = 0

    @property
    def rollouts(self) -> int:
        return self.prompts * self.group


@dataclass(frozen=True)
class PeerSetting:
    """`precision`: fp32, 'bf16' (TRL's default: autocast on fp32 weights), or 'bf16 weights'."""

    precision: str
    micro_rows: int = 64
    experts: str = "grouped_mm"
    attention: str = "sdpa"
    cache: str = "dynamic"


def class_of(precision: str) -> str:
    return "fp32" if precision == "fp32" else "bf16"


# --- ours ------------------------------------------------------------------------------------------------------------


class NeverStops(Tokenizer):
    """A tokenizer whose stop token never comes."""

    @property
    def eos_id(self) -> int:
        return -1


class TimedSource(GRPOSource):
    """Scores as ever, then puts noise in the rewards' place: what random text earns is always nothing."""

    def _roll_out(self, drawn: list, generator: torch.Generator) -> list[Group]:
        groups = super()._roll_out(drawn, generator)
        for group in groups:
            group.rollouts = [_noisy(rollout) for rollout in group.rollouts]
        return groups


def _noisy(rollout: Rollout) -> Rollout:
    return replace(rollout, reward=replace(rollout.reward, total=noise(rollout.text)))


def noise(text: str) -> float:
    return zlib.crc32(text.encode()) % 1000 / 999


def our_trainer(folder: Path, precision: str, work: Work, place: Place, aside: Path) -> Trainer:
    """The trainer that the `grpo` stage of a recipe would make."""
    model = load_model(folder, device=place.device)
    tokenizer = (NeverStops if work.forced else Tokenizer).load(folder)
    settings = GRPOSettings(
        group_size=work.group,
        prompts_per_step=work.prompts,
        max_new_tokens=work.new_tokens,
        max_rounds=1,  # so that step s asks problems 32 s to 32 s + 31, as TRL's data set does
        mean="token",
        rewards=WEIGHTS,
    )
    bf16 = precision == "bf16"
    kind = TimedSource if work.forced else GRPOSource
    tasks = TaskMix([(make_family("leg_counting", **TASK), 1.0)], work.seed)
    source = kind(model, tokenizer, tasks, settings, place.computing(precision), seed=work.seed, thinking=True)
    policy = PolicySettings(clip_low=CLIP_LOW, clip_high=CLIP_HIGH, kl_weight=0.0)
    loss = lambda m, batch, norm: policy_loss(m, batch, LossSettings(mtp_weight=0.0), policy, norm)
    optimizer = OptimizerSettings(lr=LR, beta1=BETAS[0], beta2=BETAS[1], eps=EPS, weight_decay=0.0, clip=CLIP)
    train = TrainSettings(
        steps=10**6,
        precision="bf16" if bf16 else "fp32",
        optimizer=optimizer,
        schedule=Schedule(kind="constant", warmup_steps=WARMUP),
    )
    return Trainer(model, source, loss, train, aside, place=place)


@dataclass
class Clock:
    """One side's steps: seconds of each, those of its rollouts, and what its answers earned."""

    name: str
    precision: str
    settings: dict[str, Any]
    seconds: list[float] = field(default_factory=list)
    rollout_seconds: list[float] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    lengths: list[float] = field(default_factory=list)

    @property
    def total(self) -> float:
        return sum(self.seconds)

    def forget(self) -> None:
        """Drop the warm-up steps."""
        for values in (self.seconds, self.rollout_seconds, self.rewards, self.accuracies, self.lengths):
            values.clear()

    def contestant(self, side: str, work: Work) -> Contestant:
        return Contestant(
            self.name, side, class_of(self.precision), nothing, work.rollouts, self.settings, list(self.seconds)
        )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"median_seconds": median(self.seconds), "median_rollout": median(self.rollout_seconds)}


class OurRun:
    """Our trainer with its clock."""

    def __init__(self, folder: Path, precision: str, work: Work, place: Place, aside: Path) -> None:
        self.trainer = our_trainer(folder, precision, work, place, aside)
        self.place = place
        self.clock = Clock("ziphius", precision, {"precision": precision})

    def step(self) -> None:
        self.place.barrier()
        began = time.perf_counter()
        row = self.trainer.step()
        self.place.barrier()
        self.clock.seconds.append(time.perf_counter() - began)
        self.clock.rollout_seconds.append(row["rollout_seconds"])
        self.clock.rewards.append(row["reward"])
        self.clock.accuracies.append(row["reward_accuracy"])
        self.clock.lengths.append(row["response_length"])


# --- TRL -------------------------------------------------------------------------------------------------------------


class Rewards:
    """TRL's reward function: our rules, or noise. TRL calls it once for all answers of a step."""

    __name__ = "rule_based_reward"

    def __init__(self, folder: Path, work: Work, clock: Clock) -> None:
        self.tokenizer, self.work, self.clock = Tokenizer.load(folder), work, clock
        self.family = make_family("leg_counting", **TASK)
        self.tasks = TaskMix([(self.family, 1.0)], work.seed)
        self.began = 0.0  # when the step began, set by `Turns`

    def __call__(self, completion_ids: list[list[int]], index: list[int], **_: Any) -> list[float]:
        totals, right = [], []
        for number, ids in zip(index, completion_ids, strict=True):
            finished = bool(ids) and ids[-1] == self.tokenizer.eos_id
            text = self.tokenizer.decode(ids[:-1] if finished else ids)
            problem = self.tasks.problem("train", number)[1]
            reward = score(problem, self.family, text, finished, True, WEIGHTS)
            totals.append(noise(text) if self.work.forced else float(reward.total or 0.0))
            right.append(float(reward.accuracy or 0.0))
        self.clock.rewards.append(fmean(totals))
        self.clock.accuracies.append(fmean(right))
        self.clock.lengths.append(fmean(map(len, completion_ids)))
        self.clock.rollout_seconds.append(time.perf_counter() - self.began)
        return totals


def peer_trainer(
    folder: Path, setting: PeerSetting, work: Work, place: Place, turns: Turns, steps: int, aside: Path
) -> Any:
    """TRL's GRPOTrainer on the same questions, in the same order."""
    from datasets import Dataset
    from transformers import AutoTokenizer, DeepseekV3ForCausalLM, PrinterCallback
    from trl import GRPOConfig, GRPOTrainer

    dtype = torch.bfloat16 if setting.precision == "bf16 weights" else torch.float32
    model = DeepseekV3ForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation=setting.attention, experts_implementation=setting.experts
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    own = Tokenizer.load(folder)
    problems = [turns.rewards.tasks.problem("train", index)[1] for index in range(work.prompts * steps)]
    texts = [own.render([{"role": "user", "content": problem.prompt}], thinking=True) for problem in problems]
    if tokenizer(texts[0])["input_ids"] != prompt_tokens(own, problems[0], True):
        raise RuntimeError("the two sides tokenize a prompt differently")
    rows_each = work.rollouts // place.size
    micro = min(setting.micro_rows, rows_each)
    generation: dict[str, Any] = {"min_new_tokens": work.new_tokens} if work.forced else {}
    config = GRPOConfig(
        output_dir=str(aside),
        use_cpu=not place.on_gpu,
        ddp_backend="gloo" if place.size > 1 else None,
        ddp_find_unused_parameters=False if place.size > 1 else None,
        bf16=setting.precision != "fp32",
        gradient_checkpointing=False,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=rows_each // micro,
        num_generations=work.group,
        max_completion_length=work.new_tokens,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        generation_kwargs=generation,
        cache_implementation=None if setting.cache == "dynamic" else setting.cache,
        shuffle_dataset=False,
        beta=0.0,
        num_iterations=1,
        epsilon=CLIP_LOW,
        epsilon_high=CLIP_HIGH,
        loss_type="dapo",
        scale_rewards="group",
        router_aux_loss_coef=0.0,
        max_steps=steps,
        learning_rate=LR,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=WARMUP,
        optim="adamw_torch_fused",
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        adam_epsilon=EPS,
        weight_decay=0.0,
        max_grad_norm=CLIP,
        seed=work.seed,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    data = Dataset.from_dict({"prompt": texts, "index": list(range(len(texts)))})
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=turns.rewards,
        args=config,
        train_dataset=data,
        processing_class=tokenizer,
        callbacks=[turns.callback()],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


class Turns:
    """Times TRL's steps from within its loop and lets `after` run between them, off TRL's clock."""

    def __init__(self, folder: Path, setting: PeerSetting, work: Work, after: Callable[[Clock], bool]) -> None:
        self.clock = Clock("TRL", setting.precision, asdict(setting))
        self.rewards = Rewards(folder, work, self.clock)
        self.after = after

    def callback(self) -> Any:
        from transformers import TrainerCallback

        turns = self

        class Callback(TrainerCallback):
            def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                turns.rewards.began = time.perf_counter()

            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                turns.clock.seconds.append(time.perf_counter() - turns.rewards.began)
                control.should_training_stop = not turns.after(turns.clock)
                turns.rewards.began = time.perf_counter()

        return Callback()


def run_peer(
    folder: Path, setting: PeerSetting, work: Work, place: Place, after: Callable[[Clock], bool], steps: int
) -> Clock:
    """Train TRL for up to `steps` steps, until `after` says no."""
    turns = Turns(folder, setting, work, after)
    with tempfile.TemporaryDirectory() as aside:
        peer_trainer(folder, setting, work, place, turns, steps, Path(aside)).train()
    gc.collect()
    return turns.clock


# --- TRL's best settings ---------------------------------------------------------------------------------------------


def choose(folder: Path, work: Work, place: Place, quick: bool) -> tuple[dict[str, PeerSetting], list[dict[str, Any]]]:
    """The fastest setting of each class, and what every trial gave."""
    outcomes: list[dict[str, Any]] = []
    kept: dict[str, tuple[float, PeerSetting]] = {}

    def seconds(setting: PeerSetting) -> float:
        outcome = asdict(setting)
        try:
            clock = run_peer(folder, setting, work, place, lambda clock: len(clock.seconds) < 3, 3)
            outcome["seconds"] = min(clock.seconds[1:])
        except Exception as error:
            outcome["failed"] = reason(error)
        outcomes.append(outcome)
        found = f"{outcome['seconds']:.2f} s" if "seconds" in outcome else outcome["failed"]
        console.print(f"[dim]tried TRL {', '.join(map(str, asdict(setting).values()))}: {found}[/]", highlight=False)
        return outcome.get("seconds", float("inf"))

    changes: list[dict[str, Any]] = [
        {"micro_rows": work.rollouts},
        {"experts": "eager"},
        {"attention": "eager"},
        {"cache": "static"},
    ]
    for kind, start, more in (
        ("fp32", PeerSetting("fp32"), []),
        ("bf16", PeerSetting("bf16"), [{"precision": "bf16 weights"}]),
    ):
        times = {start: seconds(start)}
        for change in [] if quick else changes + more:
            leader = min(times, key=lambda setting: times[setting])
            other = replace(leader, **change)
            times[other] = seconds(other)
        leader = min(times, key=lambda setting: times[setting])
        if times[leader] < float("inf"):
            kept[kind] = times[leader], leader
    return {kind: setting for kind, (_, setting) in kept.items()}, outcomes


# --- timing ----------------------------------------------------------------------------------------------------------


def race(
    folder: Path, peer: PeerSetting, ours: list[OurRun], work: Work, place: Place, rounds: int, warmups: int = 2
) -> Clock:
    """`rounds` rounds of one TRL step and one step of each of ours; the warm-up's are forgotten."""

    def after(clock: Clock) -> bool:
        for run in ours:
            run.step()
        if len(clock.seconds) == warmups and not after.warm:  # type: ignore[attr-defined]
            after.warm = True  # type: ignore[attr-defined]
            for each in [clock, *(run.clock for run in ours)]:
                each.forget()
        return len(clock.seconds) < rounds

    after.warm = False  # type: ignore[attr-defined]
    return run_peer(folder, peer, work, place, after, rounds + warmups)


def time_steps(
    folder: Path, chosen: dict[str, PeerSetting], work: Work, place: Place, rounds: int, aside: Path
) -> list[tuple[Clock, list[Clock]]]:
    """For each of TRL's settings a race against ours in both precisions."""
    races = []
    for setting in chosen.values():
        ours = [OurRun(folder, precision, work, place, aside) for precision in ("fp32", "bf16")]
        clock = race(folder, setting, ours, work, place, rounds)
        races.append((clock, [run.clock for run in ours]))
    return races


def race_ratios(races: list[tuple[Clock, list[Clock]]], work: Work, layout: str) -> list[dict[str, Any]]:
    """Same class against same class, and our fastest against TRL's fastest; each from rounds that both ran in."""
    ratios = []
    for peer, ours in races:
        same = next(clock for clock in ours if class_of(clock.precision) == class_of(peer.precision))
        ratios.append((class_of(peer.precision), same, peer))
    peer, ours = min(races, key=lambda pair: median(pair[0].seconds))
    ratios.append(("any", min(ours, key=lambda clock: median(clock.seconds)), peer))
    return [
        {
            "layout": layout,
            "precision": kind,
            **ratio_of(own.contestant("ours", work), other.contestant("peer", work)),
            "our_seconds": median(own.seconds),
            "peer_seconds": median(other.seconds),
            "rollout_ratio": median(other.rollout_seconds) / median(own.rollout_seconds),
            "update_ratio": _update(other) / _update(own),
            "our_settings": own.settings,
            "peer_settings": other.settings,
            "target": TARGET,
        }
        for kind, own, other in ratios
    ]


def _update(clock: Clock) -> float:
    return median(s - r for s, r in zip(clock.seconds, clock.rollout_seconds, strict=True))


def show_races(races: list[tuple[Clock, list[Clock]]], work: Work, layout: str) -> None:
    for peer, ours in races:
        entries = [peer.contestant("peer", work), *(clock.contestant("ours", work) for clock in ours)]
        show_contestants(f"GRPO steps, {layout}, {len(peer.seconds)} rounds", entries, "rollouts/s")
        for clock in [peer, *ours]:
            console.print(
                f"  {clock.name}, {clock.precision}: {median(clock.seconds):.2f} s a step, of it rollouts and rewards "
                f"{median(clock.rollout_seconds):.2f} s, update {_update(clock):.2f} s"
            )


def run_timing(folder: Path, work: Work, options: argparse.Namespace) -> dict[str, Any]:
    rounds = options.rounds or (2 if options.quick else 7)
    console.rule(f"{work.prompts} prompts x {work.group} answers of {work.new_tokens} tokens, one update")
    here = place_of(options)
    chosen, trials = choose(folder, work, here, options.quick)
    one = here.device_name if here.on_gpu else f"one process, {options.threads} threads"
    with tempfile.TemporaryDirectory() as aside:
        races = time_steps(folder, chosen, work, here, rounds, Path(aside))
        fastest = min((clock for _, ours in races for clock in ours), key=lambda clock: median(clock.seconds))
        run = OurRun(folder, fastest.precision, work, here, Path(aside))
        run.step()
        rows = profile(run.step)
    show_races(races, work, one)
    show_profile(f"Where our GRPO step goes, {fastest.precision}, {one}", rows)
    ratios = race_ratios(races, work, one)
    found = [{"layout": one, "races": _as_dicts(races)}]
    if options.threads > 1 and not here.on_gpu:
        several = f"{options.threads} processes, 1 thread each, gloo"
        order = {"folder": str(folder), "work": asdict(work), "rounds": rounds}
        order["chosen"] = {kind: asdict(setting) for kind, setting in chosen.items()}
        content, problem = _workers(order, options.threads)
        if problem is None:
            races = [(Clock(**peer), [Clock(**clock) for clock in ours]) for peer, ours in content]
            show_races(races, work, several)
            ratios += race_ratios(races, work, several)
            found.append({"layout": several, "races": _as_dicts(races)})
        else:
            console.print(f"{several}: {problem}")
            found.append({"layout": several, "failed": problem})
    console.rule("Ratios, ours against TRL")
    for r in ratios:
        verdict = "met" if r["ratio"] >= TARGET else "missed"
        console.print(
            f"{r['layout']:<34} {r['precision']:<4} {r['our_seconds']:.2f} s against {r['peer_seconds']:.2f} s: "
            f"{r['ratio']:.2f}x (rounds {r['lowest_round']:.2f} to {r['highest_round']:.2f}; rollouts "
            f"{r['rollout_ratio']:.1f}x, update {r['update_ratio']:.1f}x; target {TARGET:g}x {verdict})"
        )
    return {"target": TARGET, "ratios": ratios, "trials": trials, "layouts": found, "profile_ours": rows}


def _as_dicts(races: list[tuple[Clock, list[Clock]]]) -> list[dict[str, Any]]:
    return [{"peer": peer.as_dict(), "ours": [clock.as_dict() for clock in ours]} for peer, ours in races]


def _workers(order: dict[str, Any], count: int) -> tuple[Any, str | None]:
    with tempfile.TemporaryDirectory() as place:
        paths = Path(place) / "order.json", Path(place) / "out.json"
        paths[0].write_text(json.dumps(order))
        problem = run_workers([sys.executable, __file__, "--worker", *map(str, paths)], count, 400)
        return (None, problem) if problem else (json.loads(paths[1].read_text()), None)


def worker(order: dict[str, Any], out: Path) -> None:
    """One rank of the data-parallel race; TRL joins the same process group."""
    os.environ.setdefault("ACCELERATE_USE_CPU", "true")
    torch.set_num_threads(1)
    place = join("cpu")
    chosen = {kind: PeerSetting(**setting) for kind, setting in order["chosen"].items()}
    with tempfile.TemporaryDirectory() as aside:
        races = time_steps(Path(order["folder"]), chosen, Work(**order["work"]), place, order["rounds"], Path(aside))
    if place.is_main:
        out.write_text(json.dumps([[asdict(peer), [asdict(clock) for clock in ours]] for peer, ours in races]))
    leave()


# --- learning curves -------------------------------------------------------------------------------------------------


def run_curves(folder: Path, work: Work, options: argparse.Namespace) -> dict[str, Any]:
    """Both sides train for `--minutes` of their own time, taking turns."""
    here = place_of(options)
    budget = options.minutes * 60
    chosen, trials = choose(folder, replace(work, forced=True), here, options.quick)
    # Weights and moments in bf16 would hold TRL back at this learning rate: it learns with fp32 ones.
    sound = {kind: setting for kind, setting in chosen.items() if setting.precision != "bf16 weights"}
    setting = min((sound or {"bf16": PeerSetting("bf16")}).values(), key=lambda s: _trial_seconds(trials, s))
    console.rule(f"{options.minutes:g} minutes each from {folder}; TRL with {setting}")
    with tempfile.TemporaryDirectory() as aside:
        ours = OurRun(folder, "bf16", work, here, Path(aside))

        def after(clock: Clock) -> bool:
            while ours.clock.total < min(clock.total, budget):
                ours.step()
            console.print(
                f"{clock.total:6.1f} s  TRL step {len(clock.seconds)}: {clock.rewards[-1]:.3f}   "
                f"ours step {len(ours.clock.seconds)}: {ours.clock.rewards[-1]:.3f}"
            )
            return clock.total < budget

        steps = max(1, int(budget / 0.5))
        peer = run_peer(folder, setting, work, here, after, steps)
    curves = [_curve(ours.clock), _curve(peer)]
    picture = result_path("grpo-curve", options, ".png")
    draw(curves, picture)
    for curve in curves:
        last = curve["rewards"][-5:]
        console.print(f"{curve['name']}: {len(curve['rewards'])} steps, mean reward of the last five {fmean(last):.3f}")
    return {"curves": curves, "trials": trials, "picture": picture.name, "speed_ratio": _times_to_reach(curves)}


def _trial_seconds(trials: list[dict[str, Any]], setting: PeerSetting) -> float:
    wanted = asdict(setting)
    return next((t["seconds"] for t in trials if "seconds" in t and {k: t[k] for k in wanted} == wanted), float("inf"))


def _curve(clock: Clock) -> dict[str, Any]:
    """Rewards are of the answers a step began with, so they belong to the time before it."""
    ends, now = [], 0.0
    for seconds in clock.seconds:
        ends.append(now)
        now += seconds
    return asdict(clock) | {"at_seconds": ends}


def _times_to_reach(curves: list[dict[str, Any]]) -> list[dict[str, float | None]]:
    """Seconds until the mean reward of five steps reaches levels that both sides reach."""
    smooth = [[fmean(c["rewards"][max(0, i - 4) : i + 1]) for i in range(len(c["rewards"]))] for c in curves]
    low, high = max(values[0] for values in smooth), min(max(values) for values in smooth)
    found: list[dict[str, float | None]] = []
    for share in (0.5, 0.8, 1.0):
        level = low + share * (high - low)
        if high <= low:
            break
        times = [
            next(at for at, value in zip(c["at_seconds"], values, strict=True) if value >= level)
            for c, values in zip(curves, smooth, strict=True)
        ]
        found.append({"reward": level, "ours": times[0], "peer": times[1], "ratio": times[1] / max(times[0], 1e-9)})
    return found


def draw(curves: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
    for axis, key, title in zip(
        axes, ("rewards", "accuracies"), ("mean reward", "share of right answers"), strict=True
    ):
        for curve in curves:
            axis.plot(curve["at_seconds"], curve[key], label=f"{curve['name']}, {curve['precision']}")
        axis.set_xlabel("seconds of its own time")
        axis.set_title(f"{title} of a step's answers")
        axis.grid(alpha=0.3)
        axis.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


# --- main ------------------------------------------------------------------------------------------------------------


def make_folder(folder: Path, seed: int) -> None:
    """Random weights and a tokenizer of the task's own text."""
    rng = Random(seed)
    family = make_family("leg_counting", **TASK)
    texts = [family.lesson(rng) or "" for _ in range(1000)]
    tokenizer = train_tokenizer(texts, SMALL_SHAPE["vocab_size"])
    model = Transformer(ladder(**(SMALL_SHAPE | {"vocab_size": tokenizer.vocab_size}), num_nextn_predict_layers=0))
    model.init_weights(torch.Generator().manual_seed(seed))
    save_model(model, folder)
    tokenizer.save(folder)


def copy_without_mtp(source: Path, folder: Path) -> None:
    """TRL trains no prediction modules, so neither side gets any."""
    config = load_config(source).model_copy(update={"num_nextn_predict_layers": 0})
    model = Transformer(config)
    whole = load_model(source).state_dict()
    model.load_state_dict({name: whole[name] for name in model.state_dict()})
    save_model(model, folder)
    Tokenizer.load(source).save(folder)


def main() -> None:
    parser = arguments(__doc__, device="auto")
    parser.add_argument("--model", type=Path, default=None, help="time on this folder in place of random weights")
    parser.add_argument("--rounds", type=int, default=0, help="timed rounds (default 7, quick 2)")
    parser.add_argument("--curve", type=Path, default=None, metavar="FOLDER", help="learning curves from this folder")
    parser.add_argument("--minutes", type=float, default=3.0, help="of each side, with --curve")
    parser.add_argument("--worker", nargs=2, metavar=("ORDER", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    quiet_libraries()
    if options.worker:
        return worker(json.loads(Path(options.worker[0]).read_text()), Path(options.worker[1]))
    here = place_of(options)
    if not here.on_gpu:
        os.environ.setdefault("ACCELERATE_USE_CPU", "true")
    try:
        import trl  # noqa: F401
    except ImportError:
        raise SystemExit("TRL is missing: pip install -c constraints.txt -e .[bench]") from None

    torch.set_num_threads(options.threads)
    began = time.perf_counter()
    limits = machine_limits(here, options.threads, options.quick)
    show_limits(limits)
    work = Work(seed=options.seed, forced=options.curve is None)
    if options.quick:
        work = replace(work, prompts=4, group=4, new_tokens=16)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        given = options.curve or options.model
        if given:
            copy_without_mtp(given, folder)
        else:
            make_folder(folder, options.seed)
        content = run_curves(folder, work, options) if options.curve else run_timing(folder, work, options)
    settings = {"lr": LR, "betas": BETAS, "clip": CLIP, "warmup_steps": WARMUP, "task": TASK, "work": asdict(work)}
    content = {"limits": limits, **content, "settings": settings, "wall_seconds": time.perf_counter() - began}
    write_results("grpo-curve" if options.curve else "grpo", options, content)


if __name__ == "__main__":
    main()
