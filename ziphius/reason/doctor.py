"""The doctor: reads the gauges of a stage of training and says what is wrong and how to mend it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ziphius.ledger.folder import present_stages, read_json
from ziphius.model.families import config_from_hf
from ziphius.reason.chart import Chart, Context, Finding
from ziphius.reason.illnesses import CHECKS, LEARNING_CHECKS, stopped_as_diverged
from ziphius.train.metrics import read_metrics


def diagnose(rows: Sequence[Mapping[str, Any]], context: Context | None = None) -> list[Finding]:
    """How a stage stands at the last of its `rows` of metrics; the gravest findings first, none where it is well.

    Rows with a reward are reinforcement learning's, others those of reading or imitating. Steps that reuse earlier
    rollouts bring fewer gauges; each gauge is judged by the steps that read it.
    """
    chart = Chart(rows, context or Context())
    checks = CHECKS if any("reward" in row for row in rows) else LEARNING_CHECKS
    found = [finding for check in checks for finding in check(chart)]
    if not any(finding.severity == "ill" for finding in found):  # an illness is the cause, and has the better mend
        found += stopped_as_diverged(chart)
    return sorted(found, key=lambda finding: finding.severity != "ill")


def diagnose_run(run_folder: Path, context: Context | None = None) -> dict[str, list[Finding]]:
    """The findings of each stage of a run that has trained, finished or not, by the stage folder's name.

    A healthy stage has an empty list. Raises FileNotFoundError, in one line, where the folder holds no stages.
    """
    stages = present_stages(run_folder) if (run_folder / "stages").is_dir() else []
    if not stages:
        raise FileNotFoundError(f"{run_folder} has no stages/ folder: give the folder that `ziphius run` wrote")
    found = {}
    for stage in stages:
        rows = read_metrics(stage)
        if rows:
            found[stage.name] = diagnose(rows, context or _context(stage))
    return found


def _context(stage: Path) -> Context:
    """What the folder of a finished stage tells of its network."""
    config = read_json(stage / "config.json")
    return Context() if config is None else Context.of(config_from_hf(config).routing)


def verdict(findings: Sequence[Finding]) -> str:
    """The findings of one stage in a few words, for a heading or a line of a terminal."""
    if not findings:
        return "healthy: no illness found"
    ill = sum(finding.severity == "ill" for finding in findings)
    return f"{'ill' if ill else 'not well'}: {ill} illness{'es' * (ill != 1)}, {len(findings) - ill} warning(s)"
