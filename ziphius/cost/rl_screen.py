"""A reinforcement-learning plan as JSON and on the terminal."""

from __future__ import annotations

import json
from typing import Any

from ziphius.cost.quantity import dollars, short
from ziphius.cost.rl import RLPlan
from ziphius.cost.train_screen import spread

_QUANTITIES = ("step_seconds", "gpu_hours", "days", "dollars")


def rl_json(plan: RLPlan) -> dict[str, Any]:
    """The form of `ziphius plan rl --json`: each quantity is {point, low, high}, the bounds an 80% interval."""
    asked = plan.request
    found: dict[str, Any] = {
        "model": asked.model, "gpu": asked.accelerator.name, "gpus": asked.gpus, "steps": asked.steps,
        "questions": asked.questions, "samples": asked.samples, "rollout_outputs": asked.rollout_outputs,
        "mean_length": asked.mean_length, "max_length": asked.max_length, "cycles": plan.cycles,
        "generated_tokens": plan.generated_tokens, "cycle_parts_seconds": plan.parts, "rate": plan.rate.what,
    }  # fmt: skip
    return found | {name: getattr(plan, name).as_dict() for name in _QUANTITIES}


def show_rl(plan: RLPlan, as_json: bool) -> None:
    """Print the plan."""
    if as_json:
        print(json.dumps(rl_json(plan), indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    asked, console = plan.request, Console()
    console.print(
        f"[bold]RL of {asked.model} on {asked.gpus:,} {asked.accelerator.name.upper()}: {asked.steps:,} steps of "
        f"{asked.questions} × {asked.samples} answers, {asked.mean_length:,.0f} tokens each, {asked.max_length:,.0f} "
        "at most[/]",
        highlight=False,
    )
    table = Table(show_header=False, box=None, pad_edge=False)
    for row in (
        ("written", f"{short(plan.generated_tokens)} tokens in {plan.cycles:,.0f} rollouts"),
        ("a step", spread(plan.step_seconds, "{:.1f} s".format)),
        ("GPU-hours", spread(plan.gpu_hours)),
        ("days", spread(plan.days)),
        ("dollars, rented", f"{spread(plan.dollars, dollars)}: {plan.rate.what}"),
    ):
        table.add_row(*row)
    console.print(table)
    total = sum(plan.parts.values())
    parts = Table(title=f"A rollout of {asked.rollout_outputs:,} answers and its updates", title_justify="left")
    for heading in ("part", "seconds", "share"):
        parts.add_column(heading, justify="left" if heading == "part" else "right")
    for name, seconds in plan.parts.items():
        parts.add_row(name.replace("_", " "), f"{seconds:.0f}", f"{seconds / total:.0%}")
    console.print(parts)
    console.print("Brackets are 80% intervals.")
