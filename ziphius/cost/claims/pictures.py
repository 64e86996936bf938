"""The quarrel in three pictures, drawn from the same numbers as the claims."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ziphius.cost.claims.claim import Evidence
from ziphius.cost.claims.prices import token_costs
from ziphius.cost.claims.training import v3_run
from ziphius.cost.claims.working import Working, money
from ziphius.cost.page import COLOURS, INK, SOFT, Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def waterfall(evidence: Evidence) -> list[tuple[str, float]]:
    """What each step adds, and the sum after it, in dollars: from V3's final run to four years of the whole fleet."""
    _, run = v3_run(evidence, Working())
    rent = evidence.rent("h800", "assumed").value
    h800, whole = evidence.bills["h800"], evidence.bills["total"]
    gpus = evidence["v3_gpus"].value
    r1 = run.value + evidence["r1_hours"].value * rent
    cluster = h800.capex.point / h800.count * gpus
    return [
        ("V3's final run, GPUs rented", run.value),
        ("and R1 on top of it", r1),
        (f"buy those {gpus:,.0f} GPUs, not rent them", cluster),
        (f"the fleet's other {whole.count - gpus:,.0f} GPUs", whole.capex.point),
        ("run the whole fleet for four years", whole.tco.point),
    ]


def three_rates(evidence: Evidence) -> list[tuple[str, float, float]]:
    """The same GPU-hours at three rates: who pays it, dollars an hour, dollars in all."""
    hours, _ = v3_run(evidence, Working())
    rates = {
        "an owner's cost": evidence.bills["h800"].dollars_per_gpu_hour().point,
        "DeepSeek's assumption": evidence.rent("h800", "assumed").value,
        "market rent, early 2025": evidence.rent("h800", "on demand").value,
    }
    return [(who, rate, rate * hours.value) for who, rate in rates.items()]


def figures(evidence: Evidence) -> list[Figure]:
    """The three pictures with their captions."""
    steps, rates, prices = waterfall(evidence), three_rates(evidence), _prices(evidence)
    return [
        Figure(
            "From one training run to a fleet",
            "Each bar begins where the last one ended; the scale is logarithmic, each line ten times the one before. "
            "Buying takes the place of renting, so the rent is not added to it. The first bars are DeepSeek's hours "
            "at an assumed rent, the last three an analyst's estimate.",
            "; ".join(f"{name}: {money(value)}" for name, value in steps),
            lambda axes: _draw_waterfall(axes, steps),
        ),
        Figure(
            "The same run at three rates",
            "The GPU-hours of V3's final run are known; their price in dollars depends on who pays.",
            "; ".join(f"{who}, ${rate:.2f} an hour: {money(value)}" for who, rate, value in rates),
            lambda axes: _draw_rates(axes, rates),
            height=2.3,
        ),
        Figure(
            "Price against cost of a million tokens",
            "What was asked in January 2025 (bars), on a logarithmic scale, and what the GPUs cost that read or "
            "write the tokens on DeepSeek's published day, at the rent it assumes (lines). Of input that a cache "
            "holds the cost is below the line, which is a mean of all input.",
            "; ".join(
                f"{seller}: " + ", ".join(f"{k} {money(v)}" for k, v in by.items()) for seller, by in prices.items()
            ),
            lambda axes: _draw_prices(axes, prices),
        ),
    ]


def _prices(evidence: Evidence) -> dict[str, dict[str, float]]:
    """Dollars per million tokens, by seller and kind of token, and the cost of R1's."""
    kinds = {"input, cached": "hit", "input": "miss", "output": "output"}
    sellers = {"OpenAI o1": "o1", "DeepSeek R1": "deepseek-r1"}
    asked = {
        name: {kind: evidence.price(model, part).value for kind, part in kinds.items()}
        for name, model in sellers.items()
    }
    read, write = token_costs(evidence, Working())
    return asked | {"cost of R1's GPUs": {"input, cached": read.value, "input": read.value, "output": write.value}}


def _draw_waterfall(axes: Axes, steps: Sequence[tuple[str, float]]) -> None:
    start = 1e6
    for row, (_, end) in enumerate(steps):
        axes.barh(row, end - start, left=start, color=COLOURS[0] if row < 2 else COLOURS[1], height=0.55)
        added = money(end) if row == 0 else f"+{money(end - start)}, makes {money(end)}"
        axes.text(end * 1.15, row, added, va="center", color=INK)
        start = end
    axes.set_yticks(range(len(steps)), [name for name, _ in steps], color=INK)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(1e6, 2e11)
    ticks = [1e6, 1e7, 1e8, 1e9, 1e10]
    axes.set_xticks(ticks, ["$1M", "$10M", "$100M", "$1B", "$10B"])
    axes.minorticks_off()
    axes.grid(axis="x")


def _draw_rates(axes: Axes, rates: Sequence[tuple[str, float, float]]) -> None:
    names = [f"{who}\n${rate:.2f} an hour" for who, rate, _ in rates]
    axes.barh(names, [value / 1e6 for *_, value in rates], color=[COLOURS[2], COLOURS[0], COLOURS[1]], height=0.55)
    for row, (*_, value) in enumerate(rates):
        axes.text(value / 1e6 + 0.1, row, money(value), va="center", color=INK)
    axes.invert_yaxis()
    axes.set_xlim(0, max(value for *_, value in rates) / 1e6 * 1.15)
    axes.set_xlabel("millions of dollars")
    axes.tick_params(axis="y", labelcolor=INK)
    axes.grid(axis="x")


def _draw_prices(axes: Axes, prices: dict[str, dict[str, float]]) -> None:
    *sellers, cost = prices
    kinds = list(prices[cost])
    width = 0.34
    for column, (seller, colour) in enumerate(zip(sellers, (COLOURS[4], COLOURS[0]), strict=True)):
        places = [row + (column - 0.5) * width for row in range(len(kinds))]
        bars = axes.bar(places, [prices[seller][kind] for kind in kinds], width * 0.92, label=seller, color=colour)
        axes.bar_label(bars, [money(prices[seller][kind]) for kind in kinds], padding=2, color=INK)
    for row, kind in enumerate(kinds):
        value = prices[cost][kind]
        label = cost if row == 0 else None
        axes.plot([row - 0.4, row + 0.4], [value, value], color=COLOURS[1], linewidth=2.2, label=label)
    axes.set_yscale("log")
    axes.set_ylim(0.01, 400)
    axes.set_yticks([0.01, 0.1, 1, 10, 100], ["$0.01", "$0.10", "$1", "$10", "$100"])
    axes.minorticks_off()
    axes.set_xticks(range(len(kinds)), [f"{kind}\ncost {money(prices[cost][kind])}" for kind in kinds], color=INK)
    axes.set_ylabel("per million tokens", color=SOFT)
    axes.grid(axis="y")
    axes.legend(loc="upper left")
