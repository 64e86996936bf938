"""A serving plan as JSON, on the terminal and as a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ziphius.cost.decode import Pool
from ziphius.cost.quantity import dollars
from ziphius.cost.serve import ServePlan
from ziphius.cost.train_screen import spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NODE = 8
_QUANTITIES = (
    "input_tokens_per_second_per_gpu", "output_tokens_per_second_per_gpu", "tokens_per_second_per_user",
    "time_to_first_token_seconds", "utilisation", "dollars_per_million_hit", "dollars_per_million_miss",
    "dollars_per_million_output",
)  # fmt: skip
_OPTIONAL = ("gpus", "prefill_gpus", "decode_gpus", "dollars_per_day", "margin")


def serve_json(plan: ServePlan) -> dict[str, Any]:
    """The form of `ziphius plan serve --json`: each quantity is {point, low, high}, the bounds an 80% interval.

    Speeds are peaks of full pools, for new (not cached) input; `fleet_…` are averages at `utilisation`.
    """
    asked, work = plan.request, plan.request.workload
    cached = 1 / (1 - work.hit)
    found: dict[str, Any] = {
        "model": asked.model,
        "gpu": asked.accelerator.name,
        "precision": asked.precision,
        "kv_precision": asked.kv_precision,
        "workload": {
            "input": work.input, "output": work.output, "hit": work.hit, "context": work.mean_context,
            "user_speed": work.user_speed, "requests_per_second": work.requests_per_second,
            "acceptance": asked.acceptance, "concurrency": work.concurrency, "colocated": asked.colocated,
        },
        "prefill_pool": _pool_json(plan.prefill.pool),
        "decode_pool": _pool_json(plan.decode.pool)
        | {
            "sequences_per_gpu": plan.decode.sequences,
            "alone_tokens_per_second_per_gpu": plan.decode.alone_tokens_per_second,
            "step_seconds": plan.decode.step_seconds,
            "kv_tokens_per_group": plan.decode.kv_tokens,
            "batch_limited_by": plan.decode.limit,
        },
    }  # fmt: skip
    found |= {name: getattr(plan, name).as_dict() for name in _QUANTITIES}
    read = plan.input_tokens_per_second_per_gpu.scaled(NODE)
    written = plan.output_tokens_per_second_per_gpu.scaled(NODE)
    found |= {
        "input_tokens_per_second_per_node": read.as_dict(),
        "output_tokens_per_second_per_node": written.as_dict(),
        "fleet_input_tokens_per_second_per_node_with_hits": read.scaled(cached).times(plan.utilisation).as_dict(),
        "fleet_output_tokens_per_second_per_node": written.times(plan.utilisation).as_dict(),
        "rate": plan.rate.what,
    }
    found |= {name: getattr(plan, name).as_dict() for name in _OPTIONAL if getattr(plan, name) is not None}
    if plan.gpus is not None:
        found["nodes"] = plan.gpus.scaled(1 / NODE).as_dict()
    if plan.income_per_day is not None:
        found["income_dollars_per_day"] = plan.income_per_day
    return found


def _pool_json(pool: Pool) -> dict[str, Any]:
    return {"gpus": pool.gpus, "tp": pool.tp, "dp": pool.groups, "redundant_experts": pool.redundant_experts}


def _pool_line(pool: Pool) -> str:
    spare = f", {pool.redundant_experts} experts held twice" if pool.redundant_experts else ""
    return f"{pool.gpus} GPUs, attention TP{pool.tp}·DP{pool.groups}{spare}"


def summary_rows(plan: ServePlan) -> list[tuple[str, str]]:
    """The plan's figures as people read them."""
    read, written = plan.input_tokens_per_second_per_gpu, plan.output_tokens_per_second_per_gpu
    cached = 1 / (1 - plan.request.workload.hit)
    at_once = plan.decode.sequences * plan.decode.pool.gpus
    pools = [("prefill pool", _pool_line(plan.prefill.pool)), ("decoding pool", _pool_line(plan.decode.pool))]
    if plan.request.colocated:
        pools = [("pool", f"{_pool_line(plan.decode.pool)}; it reads and writes in turns")]
    rows = [
        *pools,
        ("sequences at once", f"{at_once:,.0f} in a pool, {plan.decode.sequences:.3g} per GPU: {plan.decode.limit}"),
        ("new input, full pools", f"{spread(read.scaled(NODE))} tokens/s per 8 GPUs"),
        ("output, full pools", f"{spread(written.scaled(NODE))} tokens/s per 8 GPUs"),
        ("utilisation of a fleet", spread(plan.utilisation, "{:.0%}".format)),
        ("input with hits, fleet", f"{spread(read.scaled(NODE * cached).times(plan.utilisation))} tokens/s per 8 GPUs"),
        ("output, fleet", f"{spread(written.scaled(NODE).times(plan.utilisation))} tokens/s per 8 GPUs"),
        ("a user gets", f"{spread(plan.tokens_per_second_per_user, '{:.1f}'.format)} tokens/s"),
        ("first token after", spread(plan.time_to_first_token_seconds, "{:.2f} s".format)),
        ("cost of 1M cached input", spread(plan.dollars_per_million_hit, "${:.4f}".format)),
        ("cost of 1M other input", spread(plan.dollars_per_million_miss, "${:.3f}".format)),
        ("cost of 1M output", spread(plan.dollars_per_million_output, "${:.3f}".format)),
    ]
    if plan.gpus is not None and plan.dollars_per_day is not None:
        rows += [
            ("nodes of 8 GPUs", spread(plan.gpus.scaled(1 / NODE), "{:,.1f}".format)),
            ("dollars a day", spread(plan.dollars_per_day, dollars)),
        ]
    if plan.margin is not None and plan.income_per_day is not None:
        rows += [
            ("income a day, list price", dollars(plan.income_per_day)),
            ("margin on cost", spread(plan.margin, "{:.0%}".format)),
        ]
    return rows


def _title(plan: ServePlan) -> str:
    work = plan.request.workload
    return (
        f"{plan.request.model} on {plan.request.accelerator.name.upper()}, {plan.request.precision}: "
        f"{work.input:,.0f} tokens in ({work.hit:.0%} cached), {work.output:,.0f} out, "
        f"at least {work.user_speed:g} tokens/s a user"
    )


def show_serve(plan: ServePlan) -> None:
    """Print the plan."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(f"[bold]{_title(plan)}[/]", highlight=False)
    table = Table(show_header=False, box=None, pad_edge=False)
    for row in summary_rows(plan):
        table.add_row(*row)
    console.print(table)
    console.print(f"{plan.rate.what}. Brackets are 80% intervals.", highlight=False)


def write_serve_page(plan: ServePlan, path: Path, speeds: Sequence[tuple[float, ServePlan]]) -> None:
    """Write the page: figures, cost per million tokens, and speed of a user against cost."""
    from ziphius.cost.page import Figure, Section, Table, write_page

    figures = [
        Figure(
            "Cost of a million tokens",
            "Bars are points, lines 80% intervals.",
            f"other input {dollars(plan.dollars_per_million_miss.point)}, "
            f"output {dollars(plan.dollars_per_million_output.point)}",
            lambda axes: _draw_costs(axes, plan),
        )
    ]
    if len(speeds) > 1:
        figures.append(
            Figure(
                "What speed costs",
                "Cost of a million output tokens against the speed that each user gets: faster means smaller batches.",
                "; ".join(f"{s:g} tokens/s {dollars(p.dollars_per_million_output.point)}" for s, p in speeds),
                lambda axes: _draw_speeds(axes, speeds),
            )
        )
    tables = [Table(("", "point (80% interval)"), summary_rows(plan), text_columns=2)]
    write_page(path, _title(plan), [plan.rate.what], [Section("The plan", tables=tables, figures=figures)])


def _draw_costs(axes: Axes, plan: ServePlan) -> None:
    costs = {
        "cached input": plan.dollars_per_million_hit,
        "other input": plan.dollars_per_million_miss,
        "output": plan.dollars_per_million_output,
    }
    points = [cost.point for cost in costs.values()]
    errors = [[c.point - c.low for c in costs.values()], [c.high - c.point for c in costs.values()]]
    axes.barh(list(costs), points, xerr=errors, capsize=4)
    axes.invert_yaxis()
    axes.set_xlabel("dollars")


def _draw_speeds(axes: Axes, speeds: Sequence[tuple[float, ServePlan]]) -> None:
    asked = [speed for speed, _ in speeds]
    costs = [plan.dollars_per_million_output for _, plan in speeds]
    axes.fill_between(asked, [c.low for c in costs], [c.high for c in costs], alpha=0.2)
    axes.plot(asked, [c.point for c in costs], marker="o")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"${value:g}")
    axes.yaxis.set_minor_formatter(lambda value, _: f"${value:g}" if f"{value:e}"[0] in "25" else "")
    axes.set_xlabel("tokens per second for each user")
    axes.set_ylabel("dollars per million output tokens")
