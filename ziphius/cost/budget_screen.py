"""What a budget buys, as text and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ziphius.cost.budget import Choice, Money
from ziphius.cost.interval import Interval
from ziphius.cost.quantity import short
from ziphius.cost.scaling import FITTED, RULE, stretched

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def budget_json(money: Money, choices: Sequence[Choice], best: Choice, how: str, recipe: Path) -> dict[str, Any]:
    """The form of `ziphius plan budget --json`; every predicted quantity is {point, low, high}."""
    return {
        "dollars": Interval.exactly(money.spent).as_dict(),
        "rate": {"dollars_per_hour": money.rate.dollars.as_dict(), "what": money.rate.what},
        "gpus": money.devices,
        "hours": money.hours,
        "gpu_hours": Interval.exactly(money.devices * money.hours).as_dict(),
        "speed": how,
        "rule": RULE,
        "stretched": stretched(best.compute),
        "choices": [_choice_json(name, choice) for name, choice in zip(_names(choices, best), choices, strict=True)],
        "recipe": str(recipe),
    }


def _choice_json(name: str, choice: Choice) -> dict[str, Any]:
    return {
        "choice": name,
        "depth": choice.depth,
        "config": choice.config.to_hf(),
        "parameters": choice.counts.total,
        "active_parameters": choice.counts.active,
        "tokens": choice.tokens.as_dict(),
        "tokens_per_second": choice.tokens_per_second.as_dict(),
        "batch_tokens": round(choice.tokens.point / choice.steps),
        "rows": choice.rows,
        "steps": choice.steps,
        "learning_rate": choice.learning_rate,
        "train_flops": choice.model_flops,
        "size_over_rule": choice.off_rule,
        "loss": choice.loss.as_dict(),
    }


def show_budget(money: Money, choices: Sequence[Choice], best: Choice, how: str, recipe: Path) -> None:
    """Print the money as hours, the choice between its neighbours, the rule and the next line to type."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.print(_opening(money, how))
    table = Table()
    table.add_column("")
    for name in _names(choices, best):
        table.add_column(name, justify="right")
    for label, show in _ROWS.items():
        table.add_row(label, *[show(choice) for choice in choices])
    console.print(table)
    for line in _remarks(choices, best):
        console.print(line)
    console.print(f"Recipe:  {recipe}\nNext:    ziphius run {recipe} --dry-run", soft_wrap=True)


def write_budget_page(
    money: Money, choices: Sequence[Choice], best: Choice, curve: Sequence[Choice], how: str, path: Path
) -> None:
    """Write the page: the table, and the loss that the same money buys at each size (`curve`)."""
    from ziphius.cost.page import Figure, Section, Table, write_page

    rows = [[label, *[show(choice) for choice in choices]] for label, show in _ROWS.items()]
    figure = Figure(
        "The same money at every size",
        "Expected loss of the networks that this money trains: small ones see many tokens, large ones few. The line "
        "is one fit of the published runs, the band spans two. The point is the choice, by the scaling rule.",
        "; ".join(f"{short(c.counts.total)} parameters: {c.loss.point:.2f}" for c in curve),
        lambda axes: _draw_curve(axes, curve, best),
    )
    section = Section("What it buys", tables=[Table(["", *_names(choices, best)], rows)], figures=[figure])
    section.small = _remarks(choices, best)
    write_page(path, f"A model for {_dollars(money.dollars)}", [_opening(money, how)], [section])


def _opening(money: Money, how: str) -> str:
    return (
        f"{_dollars(money.dollars)} at {money.rate.what}: {short(money.devices * money.hours)} device-hours, "
        f"{money.devices} for {_clock(money.hours)}, {_dollars(money.spent)} spent. {how[0].upper()}{how[1:]}."
    )


def _remarks(choices: Sequence[Choice], best: Choice) -> list[str]:
    lines = [
        f"Rule: {RULE}; batch and learning rate by the same paper.",
        "Loss: nats per token of web text that a dense model with as many active parameters would reach, by two fits "
        "of the same runs (arXiv 2404.10102, 2203.15556); experts do better, other text has another floor.",
    ]
    least = min(choices, key=lambda choice: choice.loss.point)
    if least is not best:
        lines.append(
            f"By the loss alone {short(least.counts.total)} parameters would do better here ({least.loss.point:.2f} "
            f"against {best.loss.point:.2f}): the rule does not know that a device runs networks of different sizes "
            "at different shares of its peak."
        )
    times = stretched(best.compute)
    if times > 1:
        low, high = FITTED
        lines.append(
            f"The rule was fitted between {low:.0e} and {high:.0e} FLOPs; this is {short(times)} times outside. Sizes "
            "are a starting point there, and losses below 44M parameters mean little."
        )
    return lines


def _draw_curve(axes: Axes, curve: Sequence[Choice], best: Choice) -> None:
    sizes = [choice.counts.total for choice in curve]
    axes.plot(sizes, [choice.loss.point for choice in curve], marker="o", markersize=3)
    axes.fill_between(sizes, [c.loss.low for c in curve], [c.loss.high for c in curve], alpha=0.15, linewidth=0)
    axes.plot([best.counts.total], [best.loss.point], marker="o", markersize=9, color="#c2500a", linestyle="none")
    axes.annotate(
        f"{short(best.counts.total)} parameters, {short(best.tokens.point)} tokens",
        (best.counts.total, best.loss.point),
        xytext=(0, -22),
        textcoords="offset points",
        ha="center",
    )
    axes.set_xscale("log")
    axes.set_xticks(sizes[::2], [short(size) for size in sizes[::2]])
    axes.minorticks_off()
    axes.set_xlabel("parameters")
    axes.set_ylabel("expected loss, nats per token")
    axes.grid()


_ROWS = {
    "layers × width": lambda c: f"{c.config.num_hidden_layers} × {c.config.hidden_size}",
    "parameters": lambda c: short(c.counts.total),
    "active per token": lambda c: short(c.counts.active),
    "vocabulary": lambda c: f"{c.config.vocab_size:,}",
    "tokens": lambda c: f"{short(c.tokens.point)} ({short(c.tokens.low)}–{short(c.tokens.high)})",
    "tokens per active parameter": lambda c: f"{c.tokens.point / c.counts.active:.0f}",
    "tokens/s": lambda c: short(c.tokens_per_second.point),
    "batch": lambda c: f"{short(c.tokens.point / c.steps)} tokens",
    "steps": lambda c: f"{c.steps:,}",
    "learning rate": lambda c: f"{c.learning_rate:.2e}",
    "training FLOPs": lambda c: f"{c.model_flops:.2e}",
    "size over the rule's": lambda c: f"{c.off_rule:.2f}",
    "expected loss": lambda c: f"{c.loss.point:.2f} ({c.loss.low:.2f}–{c.loss.high:.2f})",
}


def _names(choices: Sequence[Choice], best: Choice) -> list[str]:
    return ["chosen" if c is best else "smaller" if c.depth < best.depth else "larger" for c in choices]


def _dollars(value: float) -> str:
    return f"${value:,.2f}" if value >= 1 else f"${value:.3g}"


def _clock(hours: float) -> str:
    if hours < 1:
        return f"{hours * 60:.0f} minutes"
    return f"{hours:.1f} hours" if hours < 72 else f"{hours / 24:.1f} days"
