"""What people see on the terminal at the end of a run, and when they look at one. Imports no torch."""

from __future__ import annotations

import json
import shlex
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from ziphius.cost.ledger import read_rows
from ziphius.disk.errors import explain
from ziphius.ledger.folder import finished_stages, read_json
from ziphius.reason.advice import overrides
from ziphius.recipe.costs import show_ledger
from ziphius.recipe.schema import RecipeError, changed_recipe, what_is_wrong

if TYPE_CHECKING:
    from ziphius.reason.chart import Finding


def one_line(error: Exception, folder: Path | None = None) -> str:
    """An error as a person wants to read it: what is wrong and the mend; the type where it is not meant for people.

    `folder` is where files were being written, for errors of the disk that do not say.
    """
    if isinstance(error, ValidationError):
        return what_is_wrong(error.errors()[0])
    if isinstance(error, OSError) and (sentence := explain(error, folder)):
        return sentence
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, (ValueError, FileNotFoundError)):
        return text
    return f"{type(error).__name__}: {text} (ziphius --debug shows the traceback)"


def show_summary(run: Path) -> None:
    """Pass@1 after each stage, seconds, tokens, cost, the report's path and the line to type next."""
    console = Console()
    summary = read_json(run / "summary.json")
    _evaluations(console, summary)
    show_ledger(console, run, summary["price"])
    for row in read_rows(run):
        if row.skipped:
            what = f"{row.name}: {row.skipped} of {row.steps} updates were skipped, as spikes or not finite"
            console.print(f"{what}; `ziphius doctor {shlex.quote(str(run))}` says more", soft_wrap=True)
    last = [stage for stage in finished_stages(run) if (stage / "config.json").exists()]
    console.print(f"Report:  {run / 'report.html'}")
    if last:
        console.print(f"Ask it:  ziphius chat {shlex.quote(str(last[-1]))}", soft_wrap=True)


def _evaluations(console: Console, summary: dict[str, Any]) -> None:
    """One table, narrow enough for eighty columns; the control's rows are named so."""
    control = (summary.get("control") or {}).get("evaluations", [])
    rows = [(e["after"], e) for e in summary["evaluations"]] + [(f"{e['after']}, control", e) for e in control]
    if not rows:
        return
    tasks = sorted({e.get("task", e["family"]) for _, e in rows})
    asked = sorted({e["n"] for _, e in rows})
    title = f"{summary['name']}, seed {summary['seed']}: {'/'.join(map(str, asked))} held-out problems"
    table = Table(title=f"{title} of {tasks[0]}" if len(tasks) == 1 else title)
    for heading in ("after", *(["task"] if len(tasks) > 1 else []), "pass@1 (95%)", "greedy", "majority", "tokens"):
        table.add_column(heading, justify="left" if heading in ("after", "task") else "right")
    for after, e in rows:
        low, high = e["ci95"]
        table.add_row(
            after,
            *([e.get("task", e["family"])] if len(tasks) > 1 else []),
            f"{e['pass_at_1']:.1%} ({low:.1%}–{high:.1%})",
            f"{e['greedy']:.1%}",
            f"{e['majority_at_k']:.1%}",
            f"{e['response_length']:.0f}",
        )
    console.print(table)
    for after, e in rows:
        if undecided := undecided_answers(e):
            console.print(f"{after}, {e.get('task', e['family'])}: {undecided}")
    if control:
        console.print("control: the same training without thinking")


def show_findings(run: Path) -> None:
    """What the doctor has to say of each stage that trains, and the changes that this recipe would accept."""
    from ziphius.reason.doctor import diagnose_run, verdict

    console = Console()
    diagnosed = diagnose_run(run)
    if not diagnosed:
        console.print(f"{run}: no stage has trained yet, so there is nothing to examine")
    for stage, findings in diagnosed.items():
        console.print(f"[bold]{stage}[/]: {verdict(findings)}")
        for finding in findings:
            colour = "red" if finding.severity == "ill" else "yellow"
            console.print(f"  step {finding.step}: [{colour}]{finding.what}[/] {finding.mend}")
            if accepted := _accepted(run, stage, finding):
                console.print(f"    one of: {'  '.join(f'--set {change}' for change in accepted)}", highlight=False)


def _accepted(run: Path, folder: str, finding: Finding) -> list[str]:
    """The finding's changes as overrides of the run's own recipe, without those that it would refuse."""
    raw = read_json(run / "recipe.json")
    if raw is None:
        return []
    stage = list(raw["stages"])[int(folder.partition("-")[0]) - 1]  # a stage's folder begins with its number
    accepted = []
    for change in overrides(finding.changes, raw["stages"], stage):
        with suppress(RecipeError):
            changed_recipe(raw, change)
            accepted.append(change)
    return accepted


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
    if undecided := undecided_answers(found):
        console.print(f"undecided   {undecided}")


def undecided_answers(found: dict[str, Any]) -> str:
    """How many answers the checker failed on, and what they can change; empty where there is none."""
    parts = [
        f"{count} of {asked} {kind} (if all are right: {found[f'{key}_bounds'][1]:.1%})"
        for key, kind, count, asked in (
            ("pass_at_1", "sampled", found["undecided"], found["n"] * found["samples"]),
            ("greedy", "greedy", found.get("greedy_undecided", 0), found["n"]),
        )
        if count and f"{key}_bounds" in found
    ]
    return f"{' and '.join(parts)} answers not decided, counted as not right" if parts else ""
