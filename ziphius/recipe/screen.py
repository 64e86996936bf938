"""What people see on the terminal at the end of a run, and when they look at one. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from ziphius.cost.ledger import LedgerRow, read_rows


def one_line(error: Exception) -> str:
    """An error as a person wants to read it: what is wrong and the mend; the type where it is not meant for people."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        return f"{key}: {first['msg'].removeprefix('Value error, ')} (got {first['input']!r})"
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, (ValueError, FileNotFoundError)):
        return text
    return f"{type(error).__name__}: {text} (ziphius --debug shows the traceback)"


def show_summary(run: Path) -> None:
    """Pass@1 after each stage, seconds, tokens, cost, the report's path and the line to type next."""
    console = Console()
    summary = json.loads((run / "summary.json").read_text())
    _evaluations(console, summary)
    _ledger(console, [LedgerRow(**_row_fields(stage)) for stage in summary["stages"]], summary["price"])
    last = sorted(path.parent for path in (run / "stages").glob("*/config.json"))
    console.print(f"Report:  {run / 'report.html'}")
    if last:
        console.print(f"Ask it:  ziphius chat {last[-1]}", soft_wrap=True)


def _row_fields(stage: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in stage.items() if key in LedgerRow.__dataclass_fields__}


def _evaluations(console: Console, summary: dict[str, Any]) -> None:
    rows = [("", entry) for entry in summary["evaluations"]]
    rows += [("without thinking", entry) for entry in (summary.get("control") or {}).get("evaluations", [])]
    if not rows:
        return
    table = Table(title=f"{summary['name']}, seed {summary['seed']}: held-out problems")
    for heading in ("after", "", "task", "problems", "pass@1 (95%)", "greedy", "majority", "tokens/answer"):
        table.add_column(heading, justify="right" if heading not in ("after", "", "task") else "left")
    for note, e in rows:
        low, high = e["ci95"]
        table.add_row(
            e["after"],
            note,
            e.get("task", e["family"]),
            str(e["n"]),
            f"{e['pass_at_1']:.1%} ({low:.1%}–{high:.1%})",
            f"{e['greedy']:.1%}",
            f"{e['majority_at_k']:.1%}",
            f"{e['response_length']:.0f}",
        )
    console.print(table)


def _ledger(console: Console, rows: Sequence[LedgerRow], price: dict[str, Any] | None = None) -> None:
    table = Table(title="Ledger")
    for heading in ("stage", "seconds", "tokens", "device-hours", "dollars", "MFU"):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for row in rows:
        mfu = "" if row.mfu is None else f"{row.mfu:.1%}"
        tokens = f"{row.tokens:,}" if row.tokens else ""
        table.add_row(row.name, f"{row.seconds:.0f}", tokens, f"{row.device_hours:.4f}", f"{row.dollars:.4f}", mfu)
    lost = sum(row.lost_seconds for row in rows)
    if lost:
        table.add_row("of it lost to restarts", f"{lost:.0f}", "", f"{lost / 3600:.4f}", "", "")
    table.add_section()
    table.add_row(
        "total",
        f"{sum(row.seconds for row in rows):.0f}",
        f"{sum(row.tokens for row in rows):,}",
        f"{sum(row.device_hours for row in rows):.4f}",
        f"{sum(row.dollars for row in rows):.4f}",
        "",
    )
    console.print(table)
    rate = f"${price['dollars_per_hour']}/h ({price['what']}). " if price and price["dollars_per_hour"] else ""
    console.print(f"{rate}MFU: causal model FLOPs with MTP over the measured GEMM peak of the stage's precision.")


def show_cost(run: Path, as_json: bool) -> None:
    """The ledger of a run, and of its control where there is one."""
    rows = read_rows(run)
    control = read_rows(run / "control") if (run / "control").is_dir() else []
    if as_json:
        print(json.dumps({"stages": [asdict(r) for r in rows], "control": [asdict(r) for r in control]}, indent=1))
        return
    recipe = run / "recipe.json"
    price = json.loads(recipe.read_text())["price"] if recipe.exists() else None
    _ledger(Console(), rows, price)
    if control:
        _ledger(Console(), control, price)


def show_findings(run: Path) -> None:
    """What the RL doctor has to say of each RL stage."""
    from ziphius.reason.doctor import diagnose_run, verdict

    console = Console()
    diagnosed = diagnose_run(run)
    if not diagnosed:
        console.print(f"{run}: no stage of reinforcement learning yet, so there is nothing to examine")
    for stage, findings in diagnosed.items():
        console.print(f"[bold]{stage}[/]: {verdict(findings)}")
        for finding in findings:
            colour = "red" if finding.severity == "ill" else "yellow"
            console.print(f"  step {finding.step}: [{colour}]{finding.what}[/] {finding.mend}")


def show_evaluation(found: dict[str, Any], as_json: bool) -> None:
    """One evaluation as lines or JSON."""
    if as_json:
        print(json.dumps(found, indent=1))
        return
    low, high = found["ci95"]
    console = Console()
    console.print(f"{found['family']}, split {found['split']}: {found['n']} problems, {found['samples']} samples each")
    console.print(f"pass@1      {found['pass_at_1']:.1%}  (95% {low:.1%}–{high:.1%})")
    low, high = found["greedy_ci95"]
    console.print(f"greedy      {found['greedy']:.1%}  (95% {low:.1%}–{high:.1%})")
    for k, value in found["pass_at_k"].items():
        console.print(f"pass@{k:<6} {value:.1%}")
    console.print(f"majority@{found['samples']}  {found['majority_at_k']:.1%}")
    console.print(f"format      {found['format']:.1%}, {found['response_length']:.0f} tokens an answer")
    if found["undecided"]:
        console.print(f"undecided   {found['undecided']} answers, left out (the checker failed on them)")
