"""A fleet's cost and use as text, JSON and a page with pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ziphius.cost.fleet import KINDS, Bill, Fleet, Job, Month, bills, months, total
from ziphius.cost.interval import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ziphius.cost.page import Section

_PARTS = ("chips", "servers", "network", "facility", "energy", "hosting", "people")


def fleet_json(fleet: Fleet, utilisation: Sequence[float]) -> dict[str, Any]:
    """The form of `ziphius plan fleet --json`; every quantity is {point, low, high}."""
    parts = bills(fleet)
    whole = total(parts)
    return {
        "name": fleet.name,
        "source": fleet.source,
        "years": fleet.years,
        "groups": [_bill_json(bill, utilisation) for bill in parts],
        "total": _bill_json(whole, utilisation),
        "book_value_dollars": {str(y): whole.capex.scaled(fleet.depreciation.value(y)).as_dict() for y in _ages(fleet)},
        "jobs": [_job_json(fleet, parts, job) for job in fleet.jobs],
        "months": [_month_json(month) for month in months(fleet)],
    }


def show_fleet(fleet: Fleet, utilisation: Sequence[float]) -> None:
    """Print tables of cost, of jobs and of the calendar."""
    from rich.console import Console
    from rich.table import Table as Lines

    console = Console()
    console.print(f"[bold]{fleet.name}[/]. {fleet.source}", highlight=False)
    for headings, rows, title in _tables(fleet, utilisation):
        table = Lines(title=title, title_justify="left")
        for number, heading in enumerate(headings):
            table.add_column(heading, justify="left" if not number or heading == "site" else "right")
        for number, row in enumerate(rows):
            if row[0] == "total" and number:
                table.add_section()
            table.add_row(*row)
        console.print(table)
    for line in _remarks(fleet):
        console.print(line, highlight=False)


def write_fleet_page(fleet: Fleet, utilisation: Sequence[float], path: Path) -> None:
    """Write the page with the same tables and pictures of cost and use."""
    from ziphius.cost.page import Figure, Section, Table, write_page

    parts = bills(fleet)
    tables = [
        Table(headings, rows, title, total=rows[-1][0] == "total")
        for headings, rows, title in _tables(fleet, utilisation)
    ]
    cost = Figure(
        "Where the money goes",
        f"Capital and {fleet.years:g} years of operation, by type of GPU; the bar is the point, the line its range.",
        "; ".join(f"{bill.name} {_millions(bill.tco)}" for bill in parts),
        lambda axes: _draw_cost(axes, parts),
    )
    sections: list[Section] = [Section("What it costs", tables=tables[:2], figures=[cost])]
    calendar = months(fleet)
    if calendar:
        use = Figure(
            "Who uses it",
            "Share of the fleet's GPU-hours that the file's jobs take in each month. White is what no job explains.",
            "; ".join(f"{month.first:%Y-%m}: {1 - month.free:.0%} used" for month in calendar),
            lambda axes: _draw_use(axes, calendar),
        )
        sections.append(Section("What it does", tables=tables[2:], figures=[use], small=_remarks(fleet)))
    write_page(path, fleet.name, [fleet.source], sections)


# --- tables ----------------------------------------------------------------------------------------------------------


def _tables(fleet: Fleet, utilisation: Sequence[float]) -> list[tuple[list[str], list[list[str]], str]]:
    parts = bills(fleet)
    rows = [*parts, total(parts)]
    shown = [name for name in _PARTS if any(getattr(bill, name).point for bill in parts)]
    cost = (
        ["GPU", "site", "count", *shown, "capex", "opex", "TCO"],
        [
            [
                bill.name,
                bill.site,
                f"{bill.count:,}",
                *[_millions(getattr(bill, name)) for name in (*shown, "capex", "opex", "tco")],
            ]
            for bill in rows
        ],
        f"Millions of dollars, {fleet.years:g} years",
    )
    hourly = (
        ["GPU", *[f"used {share:.0%}" for share in utilisation]],
        [[bill.name, *[_range(bill.dollars_per_gpu_hour(share)) for share in utilisation]] for bill in rows],
        "Dollars per GPU-hour in use",
    )
    found = [cost, hourly]
    if fleet.jobs:
        found += [_job_table(fleet, parts), _calendar_table(fleet)]
    return found


def _job_table(fleet: Fleet, parts: Sequence[Bill]) -> tuple[list[str], list[list[str]], str]:
    rows = []
    for job in fleet.jobs:
        hours, dollars = _job(fleet, parts, job)
        rows.append([job.name, job.kind, job.gpu, f"{hours:,.0f}", _millions(dollars)])
    return ["job", "kind", "GPU", "GPU-hours", "$M at the owner's cost"], rows, "Jobs"


def _calendar_table(fleet: Fleet) -> tuple[list[str], list[list[str]], str]:
    calendar = months(fleet)
    kinds = [kind for kind in KINDS if any(month.by_kind.get(kind) for month in calendar)]
    rows = [
        [f"{month.first:%Y-%m}", f"{sum(month.capacity.values()) / 1e6:.1f}M"]
        + [f"{month.share(kind):.1%}" for kind in kinds]
        + [f"{month.free:.1%}"]
        for month in calendar
    ]
    return ["month", "GPU-hours", *kinds, "no job known"], rows, "Share of the fleet"


def _remarks(fleet: Fleet) -> list[str]:
    lines = []
    for month in months(fleet):
        for gpu, times in month.overbooked.items():
            have = "there are none" if times == float("inf") else f"{times:.2f} times what there is"
            lines.append(f"Overbooked: in {month.first:%Y-%m} the jobs on {gpu} ask for {have}.")
    wealth = fleet.depreciation
    way = (
        f"{wealth.rate:.0%} a year"
        if wealth.method == "declining"
        else f"to {wealth.residual:.0%} in {wealth.years:g} years"
    )
    worth = ", ".join(f"{fleet.depreciation.value(age):.0%} after {age}" for age in _ages(fleet)[1:])
    lines.append(f"Book value, written off {way} ({wealth.method}): {worth} years.")
    lines += [f"{job.name}: {job.source}." for job in fleet.jobs if job.source]
    return lines


# --- numbers ---------------------------------------------------------------------------------------------------------


def _job(fleet: Fleet, parts: Sequence[Bill], job: Job) -> tuple[float, Interval]:
    """GPU-hours of a job and what they cost the fleet's owner at full use."""
    hours = job.hours_on(job.from_, job.to)
    return hours, total([bill for bill in parts if bill.name == job.gpu]).dollars_per_gpu_hour().scaled(hours)


def _ages(fleet: Fleet) -> list[int]:
    return list(range(int(fleet.years) + 1))


def _bill_json(bill: Bill, utilisation: Sequence[float]) -> dict[str, Any]:
    named = {f"{name}_dollars": getattr(bill, name).as_dict() for name in (*_PARTS, "capex", "opex", "tco")}
    hourly = {f"{share:g}": bill.dollars_per_gpu_hour(share).as_dict() for share in utilisation}
    return {"gpu": bill.name, "site": bill.site, "count": bill.count, **named, "dollars_per_gpu_hour": hourly}


def _job_json(fleet: Fleet, parts: Sequence[Bill], job: Job) -> dict[str, Any]:
    hours, dollars = _job(fleet, parts, job)
    about = {"name": job.name, "kind": job.kind, "gpu": job.gpu, "from": str(job.from_), "to": str(job.to)}
    return about | {"gpu_hours": Interval.exactly(hours).as_dict(), "dollars": dollars.as_dict(), "source": job.source}


def _month_json(month: Month) -> dict[str, Any]:
    return {
        "month": f"{month.first:%Y-%m}",
        "gpu_hours": sum(month.capacity.values()),
        "share": {kind: month.share(kind) for kind in KINDS},
        "share_without_job": month.free,
        "overbooked": {gpu: None if times == float("inf") else times for gpu, times in month.overbooked.items()},
    }


def _millions(value: Interval) -> str:
    return f"{value.point / 1e6:,.1f}" if value.point < 1e8 else f"{value.point / 1e6:,.0f}"


def _range(value: Interval) -> str:
    if value.high == value.low:
        return f"{value.point:.2f}"
    return f"{value.point:.2f} ({value.low:.2f}–{value.high:.2f})"


# --- pictures --------------------------------------------------------------------------------------------------------


def _draw_cost(axes: Axes, parts: Sequence[Bill]) -> None:
    names = [bill.name for bill in parts]
    left = [0.0] * len(parts)
    for part in _PARTS:
        values = [getattr(bill, part).point / 1e6 for bill in parts]
        if any(values):
            axes.barh(names, values, left=left, label=part, height=0.6)
            left = [a + b for a, b in zip(left, values, strict=True)]
    low = [(bill.tco.point - bill.tco.low) / 1e6 for bill in parts]
    high = [(bill.tco.high - bill.tco.point) / 1e6 for bill in parts]
    axes.errorbar(left, names, xerr=[low, high], fmt="none", ecolor="#1b2733", capsize=3, linewidth=1)
    axes.invert_yaxis()
    axes.set_xlabel("millions of dollars")
    axes.grid(axis="x")
    axes.legend(loc="lower right")


def _draw_use(axes: Axes, calendar: Sequence[Month]) -> None:
    names = [f"{month.first:%b %Y}" for month in calendar]
    bottom = [0.0] * len(names)
    for kind in KINDS:
        values = [100 * month.share(kind) for month in calendar]
        if any(values):
            axes.bar(names, values, bottom=bottom, label=kind, width=0.7)
            bottom = [a + b for a, b in zip(bottom, values, strict=True)]
    axes.set_ylim(0, max(100.0, *bottom))
    axes.set_ylabel("% of GPU-hours")
    axes.tick_params(axis="x", rotation=30)
    axes.grid(axis="y")
    axes.legend(loc="upper right")
