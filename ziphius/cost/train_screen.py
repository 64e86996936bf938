"""A training plan as JSON, on the terminal and as a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ziphius.cost.interval import Interval
from ziphius.cost.quantity import dollars, short
from ziphius.cost.train import GIB, TrainPlan

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ziphius.cost.phases import PhasesPlan
    from ziphius.cost.search import Candidate, Search

_SEARCH_HEADINGS = ("layout", "why not", "tokens/s per GPU", "GiB")
_QUANTITIES = (
    "step_seconds", "tokens_per_second_per_gpu", "mfu", "mfu_non_causal", "gpu_hours", "days", "energy_mwh", "dollars",
    "memory_gib",
)  # fmt: skip


def train_json(plan: TrainPlan, search: Search | None = None) -> dict[str, Any]:
    """The form of `ziphius plan train --json`: each quantity is {point, low, high}, the bounds an 80% interval."""
    asked = plan.request
    found: dict[str, Any] = {
        "model": asked.model,
        "gpu": asked.accelerator.name,
        "gpus": asked.gpus,
        "tokens": asked.tokens,
        "seq": asked.seq,
        "batch": plan.batch,
        "precision": asked.precision,
        "stack": asked.stack,
        "software": str(asked.software) if asked.software else None,
        "layout": _layout_json(plan),
    }
    found |= {name: getattr(plan, name).as_dict() for name in _QUANTITIES}
    found |= {
        "dollars_owned": plan.dollars_owned.as_dict() if plan.dollars_owned else None,
        "mfu_basis": plan.mfu_basis,
        "flops_per_token": plan.flops_per_token,
        "fits": plan.fits,
        "memory_capacity_gib": plan.capacity_gib,
        "memory_parts_gib": {name: amount / GIB for name, amount in plan.memory_bytes.items()},
        "step_parts_seconds": plan.step.parts,
        "rate": plan.rate.what,
        "rate_owned": plan.owned.what if plan.owned else None,
    }
    if search is not None:
        found["alternatives"] = [_candidate_json(plan, c) for c in search.best[1:]]
        found["do_not_fit"] = [_candidate_json(plan, c) for c in search.too_large]
        found["layouts_tried"] = search.tried
    return found


def phases_json(plans: PhasesPlan) -> dict[str, Any]:
    """The form of `ziphius plan train --phases … --json`: a plan a phase, and the sums."""
    phases = [
        {"name": phase.name, "note": phase.note, "published_gpu_hours": phase.published_gpu_hours} | train_json(plan)
        for phase, plan in plans.phases
    ]
    totals = {name: getattr(plans, name).as_dict() for name in ("gpu_hours", "dollars", "energy_mwh", "days")}
    return {"phases": phases, **totals}


def _layout_json(plan: TrainPlan) -> dict[str, Any]:
    layout = plan.layout
    return {
        "parallel": layout.axes(), "tp": layout.tp, "cp": layout.cp, "pp": layout.pp, "vpp": layout.vpp,
        "ep": layout.ep, "dp": layout.data_parallel(plan.request.gpus), "zero": layout.zero,
        "microbatch": layout.microbatch, "schedule": layout.schedule, "recompute": layout.recompute,
    }  # fmt: skip


def _candidate_json(plan: TrainPlan, candidate: Candidate) -> dict[str, Any]:
    layout = candidate.layout
    return {
        "parallel": layout.axes(),
        "microbatch": layout.microbatch,
        "schedule": layout.schedule,
        "recompute": layout.recompute,
        "tokens_per_second_per_gpu": plan.batch * plan.request.seq / candidate.seconds / plan.request.gpus,
        "memory_gib": candidate.memory_gib,
        "why": candidate.loses,
    }


def spread(quantity: Interval, write: Any = short) -> str:
    return f"{write(quantity.point)}  ({write(quantity.low)} – {write(quantity.high)})"


def summary_rows(plan: TrainPlan) -> list[tuple[str, str]]:
    """The plan's figures as people read them."""
    rows = [
        ("tokens/s per GPU", spread(plan.tokens_per_second_per_gpu)),
        ("MFU", f"{spread(plan.mfu, '{:.1%}'.format)}: {plan.mfu_basis}"),
        ("MFU, non-causal", spread(plan.mfu_non_causal, "{:.1%}".format)),
        ("step", spread(plan.step_seconds, "{:.3g} s".format)),
        ("GPU-hours", spread(plan.gpu_hours)),
        ("days", spread(plan.days)),
        ("energy", spread(plan.energy_mwh, "{:,.1f} MWh".format)),
        ("dollars, rented", f"{spread(plan.dollars, dollars)}: {plan.rate.what}"),
    ]
    if plan.dollars_owned is not None and plan.owned is not None:
        rows.append(("dollars, owned", f"{spread(plan.dollars_owned, dollars)}: {plan.owned.what}"))
    fit = "fits" if plan.fits else "may NOT fit"
    rows.append(("memory", f"{spread(plan.memory_gib, '{:.1f} GiB'.format)} of {plan.capacity_gib:.1f}: {fit}"))
    return rows


def _title(plan: TrainPlan) -> str:
    asked = plan.request
    return (
        f"{asked.model}, {short(asked.tokens)} tokens on {asked.gpus:,} {asked.accelerator.name.upper()}, "
        f"{asked.precision}, {plan.batch:,} × {asked.seq:,} tokens a step"
    )


def _layout_line(plan: TrainPlan) -> str:
    layout = plan.layout
    return (
        f"Layout {layout.axes()}, {layout.data_parallel(plan.request.gpus)} replicas, microbatch {layout.microbatch}, "
        f"{layout.schedule}, recompute {layout.recompute}; {plan.request.stack} kernels, software of "
        f"{plan.request.software or 'the newest rows'}. Brackets are 80% intervals."
    )


def show_train(plan: TrainPlan, search: Search | None = None) -> None:
    """Print the plan."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(f"[bold]{_title(plan)}[/]", highlight=False)
    console.print(_layout_line(plan), highlight=False)
    table = Table(show_header=False, box=None, pad_edge=False)
    for row in summary_rows(plan):
        table.add_row(*row)
    console.print(table)
    parts = Table(title="Where a step's seconds and a device's memory go", title_justify="left")
    for heading in ("step", "seconds", "share", "memory", "GiB"):
        parts.add_column(heading, justify="left" if heading in ("step", "memory") else "right")
    steps, memory = _step_rows(plan), _memory_rows(plan)
    for number in range(max(len(steps), len(memory))):
        left = steps[number] if number < len(steps) else ("", "", "")
        right = memory[number] if number < len(memory) else ("", "")
        parts.add_row(*left, *right)
    console.print(parts)
    if search is not None:
        console.print(_search_table(plan, search))


def show_phases(plans: PhasesPlan) -> None:
    """Print one row a phase and the sums."""
    from rich.console import Console
    from rich.table import Table

    first = plans.phases[0][1].request
    console = Console()
    title = f"{first.model} on {first.gpus:,} {first.accelerator.name.upper()}, {first.precision}"
    table = Table(title=title, title_justify="left")
    for heading in ("phase", "tokens", "context", "layout", "tokens/s per GPU", "GPU-hours", "dollars"):
        table.add_column(heading, justify="left" if heading in ("phase", "layout") else "right")
    for phase, plan in plans.phases:
        table.add_row(
            phase.name, short(phase.tokens), f"{plan.request.seq:,}", plan.layout.axes(),
            short(plan.tokens_per_second_per_gpu.point), spread(plan.gpu_hours), spread(plan.dollars, dollars),
        )  # fmt: skip
    table.add_section()
    table.add_row("total", "", "", "", "", spread(plans.gpu_hours), spread(plans.dollars, dollars))
    console.print(table)
    for phase, plan in plans.phases:
        if phase.note:
            console.print(f"{phase.name}: {phase.note}.", highlight=False)
        if phase.published_gpu_hours:
            ratio = plan.gpu_hours.point / phase.published_gpu_hours
            console.print(
                f"{phase.name}: published {short(phase.published_gpu_hours)} GPU-hours, plan/published {ratio:.2f}.",
                highlight=False,
            )
    console.print(f"{plans.phases[0][1].rate.what}. Brackets are 80% intervals.", highlight=False)


def _step_rows(plan: TrainPlan) -> list[tuple[str, str, str]]:
    total = plan.step.total
    rows = [(name, seconds) for name, seconds in plan.step.parts.items() if seconds > 5e-4 * total]
    shown = [(name.replace("_", " "), f"{seconds:.3f}", f"{seconds / total:.1%}") for name, seconds in rows]
    return [*shown, ("total", f"{total:.3f}", "100%")]


def _memory_rows(plan: TrainPlan) -> list[tuple[str, str]]:
    shown = [(name.replace("_", " "), f"{amount / GIB:.1f}") for name, amount in plan.memory_bytes.items()]
    return [*shown, ("total", f"{plan.memory_gib.point:.1f}")]


def _search_rows(plan: TrainPlan, search: Search) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = []
    for candidate in (*search.best, *search.too_large):
        row = _candidate_json(plan, candidate)
        how = f"{row['parallel']}, mbs {row['microbatch']}, {row['schedule']}, {row['recompute']}"
        rows.append((how, row["why"] or "chosen", short(row["tokens_per_second_per_gpu"]), f"{row['memory_gib']:.0f}"))
    return rows


def _search_table(plan: TrainPlan, search: Search) -> Any:
    from rich.table import Table

    table = Table(title=f"{search.tried:,} layouts priced: the best, and faster ones that do not fit")
    for heading in _SEARCH_HEADINGS:
        table.add_column(heading, justify="left" if heading in ("layout", "why not") else "right")
    for row in _search_rows(plan, search):
        table.add_row(*row)
    return table


def write_train_page(
    plan: TrainPlan, path: Path, scaling: Sequence[tuple[int, TrainPlan]], search: Search | None = None
) -> None:
    """Write the page: figures, step-time and memory bars, days and cost against the number of GPUs."""
    from ziphius.cost.page import Figure, Section, Table, write_page

    step = Figure(
        "Where a step's time goes", "Seconds of one optimiser step, by part.",
        "; ".join(f"{name} {share}" for name, _, share in _step_rows(plan)),
        lambda axes: _bars(axes, plan.step.parts, "seconds"),
    )  # fmt: skip
    memory = Figure(
        "Where a device's memory goes", f"GiB on the fullest device; the line is its limit: {plan.capacity_gib:.0f}.",
        "; ".join(f"{name} {amount} GiB" for name, amount in _memory_rows(plan)),
        lambda axes: _bars(axes, {k: v / GIB for k, v in plan.memory_bytes.items()}, "GiB", plan.capacity_gib),
    )  # fmt: skip
    figures = [step, memory]
    if len(scaling) > 1:
        figures.append(
            Figure(
                "Cost and time against the number of GPUs",
                "The same run, each time with the best layout found. Bars: 80% intervals of the cost; line: days.",
                "; ".join(f"{gpus} GPUs: {dollars(p.dollars.point)}, {p.days.point:.3g} days" for gpus, p in scaling),
                lambda axes: _scaling(axes, scaling),
            )
        )
    tables = [Table(("", "point (80% interval)"), summary_rows(plan), text_columns=2)]
    if search is not None:
        tables.append(Table(_SEARCH_HEADINGS, _search_rows(plan, search), "Layouts", text_columns=2))
    write_page(path, _title(plan), [_layout_line(plan)], [Section("The plan", tables=tables, figures=figures)])


def _bars(axes: Axes, parts: dict[str, float], unit: str, limit: float | None = None) -> None:
    shown = {name: value for name, value in parts.items() if value > 0}
    names = [name.replace("_", " ") for name in shown]
    bars = axes.barh(names, list(shown.values()))
    axes.bar_label(bars, [f"{value:.3g}" for value in shown.values()], padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    axes.margins(x=0.12)
    if limit is not None:
        total = sum(shown.values())
        axes.barh(["all"], [total], color="#586776")
        axes.bar_label(axes.containers[-1], [f"{total:.3g}"], padding=3, fontsize=8)  # type: ignore[arg-type]
        axes.axvline(limit, color="#b3261e", linewidth=1)


def _scaling(axes: Axes, scaling: Sequence[tuple[int, TrainPlan]]) -> None:
    places = range(len(scaling))
    points = [plan.dollars.point for _, plan in scaling]
    errors = [[p - plan.dollars.low for p, (_, plan) in zip(points, scaling, strict=True)],
              [plan.dollars.high - p for p, (_, plan) in zip(points, scaling, strict=True)]]  # fmt: skip
    axes.errorbar(places, points, yerr=errors, fmt="o", capsize=4)
    axes.set_ylim(0, max(plan.dollars.high for _, plan in scaling) * 1.1)
    axes.set_xticks(list(places), [f"{gpus:,}" for gpus, _ in scaling])
    axes.set_xlabel("GPUs")
    axes.set_ylabel("dollars, rented")
    axes.yaxis.set_major_formatter(lambda value, _: dollars(value))
    days = axes.twinx()
    days.plot(places, [plan.days.point for _, plan in scaling], color="#c2500a", marker=".")
    days.set_ylim(bottom=0)
    days.set_ylabel("days", color="#c2500a")
