"""`ziphius plan budget`: an amount of money becomes a choice of model, and the choice a recipe."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from ziphius.cost.budget import (
    Choice,
    Money,
    Speed,
    choose,
    ladder_of_losses,
    measured_speed,
    network,
    planned_speed,
    split_money,
)
from ziphius.cost.budget_screen import budget_json, show_budget, write_budget_page
from ziphius.cost.data import Data
from ziphius.cost.interval import Interval
from ziphius.cost.money import Rate, rental_rate
from ziphius.cost.scaling import RULE, model_scale
from ziphius.disk.write import write_text
from ziphius.recipe.schema import RecipeError, check_recipe

CPU, CORES_OF_QUOTE = "cpu-2core", 2
FIRST_DEPTH, FIRST_SECONDS, SECOND_SECONDS = 4, 3.0, 7.0

Measure = Callable[[Any, int, float], float]  # (network, tokens of a sequence, seconds) -> FLOPs a second


@dataclass(frozen=True)
class BudgetOptions:
    """The options as they were typed; `seq` tokens of a sequence, `corpus` the text files to learn from."""

    dollars: float
    gpu: str
    hours: float | None = None
    rate: float | None = None
    market: str | None = None
    seq: int = 1024
    corpus: list[str] = field(default_factory=list)
    out: Path = Path("budget.toml")
    force: bool = False
    data: list[Path] = field(default_factory=list)


def run_budget(
    options: BudgetOptions, as_json: bool = False, html: Path | None = None, measure: Measure | None = None
) -> None:
    """Choose, write the recipe (and the page `html`) and print. `measure` stands in for the probe of this machine."""
    if options.out.exists() and not options.force:
        raise RecipeError(f"{options.out} exists already; name another with --out, or write over it with --force")
    data = Data(options.data)
    if options.gpu.lower() == "cpu":
        rate = _cpu_rate(options, data)
        money = split_money(options.dollars, rate, options.hours, most=1)
        speed, how = _speed_of_this_machine(money, options.seq, measure or _probe)
        device = "cpu"
    else:
        accelerator = data.accelerator(options.gpu)
        rate = rental_rate(accelerator, data, options.rate, options.market)
        money = split_money(options.dollars, rate, options.hours)
        speed = planned_speed(accelerator, money.devices, data, rate)
        device = "cpu" if accelerator.architecture == "cpu" else "cuda"
        how = f"speed planned for {money.devices} × {accelerator.title}, PyTorch run eagerly in BF16"
    choices = choose(money, speed, options.seq)
    best = chosen(choices)
    write_recipe(options, money, best, device)
    if html is not None:
        curve = ladder_of_losses(money, speed, options.seq, best)
        write_budget_page(money, choices, best, curve, how, html)
    if as_json:
        print(json.dumps(budget_json(money, choices, best, how, options.out), indent=1))
    else:
        show_budget(money, choices, best, how, options.out)


def chosen(choices: Sequence[Choice]) -> Choice:
    """The one nearest the rule."""
    return min(choices, key=lambda choice: max(choice.off_rule, 1 / choice.off_rule))


def _cpu_rate(options: BudgetOptions, data: Data) -> Rate:
    """Dollars an hour of this machine: as given, or the quote for two cores times its pairs of cores."""
    if options.rate is not None:
        return Rate(Interval.exactly(options.rate), f"${options.rate:g} an hour of this machine as given")
    cores = os.cpu_count() or CORES_OF_QUOTE
    row = data.rental(CPU, options.market)
    price = row.dollars_per_hour * cores / CORES_OF_QUOTE
    return Rate(Interval.exactly(price), f"${price:g} an hour of {cores} cores ({row.source}, {row.date})")


def _speed_of_this_machine(money: Money, seq_len: int, measure: Measure) -> tuple[Speed, str]:
    """Probe a small network, choose by it, and probe the one chosen: ten seconds of training steps."""
    found: dict[float, float] = {}
    for depth, seconds in ((FIRST_DEPTH, FIRST_SECONDS), (None, SECOND_SECONDS)):
        if depth is None:
            depth = chosen(choose(money, measured_speed(found), seq_len)).depth
        config = network(depth, seq_len)
        found[model_scale(config, seq_len)] = measure(config, seq_len, seconds)
    speeds = " and ".join(f"{flops / 1e9:.1f} GFLOP/s" for flops in found.values())
    return measured_speed(found), f"speed measured on this machine by training steps: {speeds}"


def _probe(config: Any, seq_len: int, seconds: float) -> float:
    from ziphius.train.probe import measure_training

    return measure_training(config, seq_len, seconds)


# --- the recipe ------------------------------------------------------------------------------------------------------


def write_recipe(options: BudgetOptions, money: Money, choice: Choice, device: str) -> None:
    """Write the recipe of `choice` to `options.out` (aside, then renamed), checked as `ziphius run` checks it."""
    raw = recipe_of(options, money, choice, device)
    check_recipe(raw, "the recipe of this budget")
    text = f"""\
# What ${options.dollars:g} buys on {options.gpu}: written by `ziphius plan budget`, to be read and changed.
#
# Size, tokens, batch and learning rate follow {RULE}.
# {money.devices} × {options.gpu}, {money.hours:.3g} hours, {money.rate.what}.
# {"Put your own text in place of these lessons." if not options.corpus else "The text is yours."}

{tomli_w.dumps(raw)}"""
    write_text(options.out, text)


def recipe_of(options: BudgetOptions, money: Money, choice: Choice, device: str) -> dict[str, Any]:
    """The recipe as a table: a tokenizer and pretraining, on GPUs with one process each or on a CPU."""
    model: dict[str, Any] = {"depth": choice.depth}
    if options.seq > 1024:
        model["overrides"] = {"max_position_embeddings": options.seq}
    text: dict[str, Any] = {"corpora": {"text": {"path": options.corpus}}}
    if not options.corpus:
        lessons = {"family": "leg_counting", "settings": {"min_animals": 2, "max_animals": 6}}
        text = {"tasks": {"lessons": lessons}, "corpora": {"lessons": {"task": "lessons"}}}
    warm_up = min(2000, max(10, choice.steps // 50), choice.steps // 2)
    train = {
        "steps": choice.steps,
        "precision": "bf16",
        "save_every": max(10, choice.steps // 50),
        "optimizer": {"kind": "adamw", "lr": float(f"{choice.learning_rate:.2e}")},
        "schedule": {"kind": "wsd", "warmup_steps": warm_up, "decay": 0.2},
    }
    pretrain = {
        "kind": "pretrain",
        "seq_len": options.seq,
        "rows": choice.rows,
        "micro_rows": min(choice.rows, max(1, 8192 // options.seq)),
        "train": train,
    }
    seconds = choice.tokens.point / choice.tokens_per_second.point
    return {
        "name": f"budget-{options.dollars:g}-{options.gpu.lower()}",
        "model": model,
        **text,
        "stages": {"tokenizer": {"kind": "tokenizer", "vocab_size": choice.config.vocab_size}, "pretrain": pretrain},
        "price": {"dollars_per_hour": round(money.rate.dollars.point * money.devices, 4), "what": money.rate.what},
        "machine": {
            "device": device,
            "processes": 0 if device == "cpu" else money.devices,
            "train_flops_per_second": float(f"{choice.model_flops / seconds:.3g}"),
        },
    }
