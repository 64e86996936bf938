"""A run's folder as one HTML page that needs nothing else: no network, no scripts, no other file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import tomli_w

from ziphius.disk.write import write_text
from ziphius.reason.doctor import diagnose_run, verdict
from ziphius.reason.rewards import split_completion
from ziphius.report.drawing import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, compact
from ziphius.report.folder import Run, Stage, read_run
from ziphius.report.pictures import pictures

KINDS = {
    "tokenizer": "cutting text into tokens",
    "pretrain": "learning to read",
    "sft": "imitating worked solutions",
    "grpo": "reinforcement learning",
    "evaluation": "held-out questions",
    "data": "reading, cutting and packing text",
    "lost": "thrown away by a stop, and done again",
    "abandoned": "done with other settings than these",
    "startup": "loading, choosing, writing",
}


def write_report(run_folder: Path) -> Path:
    """Write `run_folder/report.html` from what the run left there, and return its path.

    Sections whose numbers a run does not have (no reinforcement learning, no control) are left out. Raises
    FileNotFoundError, in one line, for a folder without a summary.
    """
    html = render(read_run(run_folder))
    path = run_folder / "report.html"
    write_text(path, html)
    return path


def render(run: Run) -> str:
    """The page's text; everything from the folder is escaped."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"compact": compact, "percent": _percent, "interval": _interval, "plain": _plain}
    template = environment.from_string(files("ziphius.report").joinpath("report.html").read_text(encoding="utf-8"))
    summary = run.summary
    findings = diagnose_run(run.folder)
    ledgers = [("", _bills(summary))]
    if summary.get("control"):
        ledgers.append(("The control, trained without thinking", _bills(summary["control"])))
    return template.render(
        name=summary["name"],
        seed=summary["seed"],
        parameters=summary.get("parameters"),
        start=summary.get("start"),
        minutes=summary["total_seconds"] / 60,
        dollars=sum(stage["dollars"] for stage in summary["stages"]),
        price=summary["price"],
        machine=summary["machine"],
        results=_results(run),
        pictures=pictures(run),
        frame={"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM},
        comparison=_comparison(run.stages, run.recipe.get("evaluation", {}).get("show")),
        ledgers=[(title, rows, _total(rows)) for title, rows in ledgers],
        kinds=KINDS,
        skips=_skips(run.stages),
        left_out=[(stage.name, what) for stage in run.stages if (what := ", ".join(_left_out(stage.data)))],
        doctor=[(stage, verdict(found), found) for stage, found in findings.items()],
        recipe=tomli_w.dumps(_without_none(run.recipe)),
    )


def _results(run: Run) -> list[tuple[str, dict[str, Any]]]:
    """Every evaluation with the note that tells a control from the run."""
    control = (run.summary.get("control") or {}).get("evaluations", [])
    return [("", entry) for entry in run.summary["evaluations"]] + [("without thinking", entry) for entry in control]


def _comparison(stages: Sequence[Stage], show: int | None) -> dict[str, Any] | None:
    """The first `show` held-out problems before and after reinforcement learning; without it, only the last answers."""
    asked = [stage for stage in stages if any(entry["examples"] for entry in stage.evaluations)]
    if not asked:
        return None
    rl = [number for number, stage in enumerate(asked) if stage.kind == "grpo"]
    shown = [asked[rl[0] - 1], asked[rl[-1]]] if rl and rl[0] else [asked[-1]]
    columns = [{example["prompt"]: example for example in _examples(stage)} for stage in shown]
    problems = [
        {"prompt": example["prompt"], "answer": example["answer"], "tries": [_try(c[prompt]) for c in columns]}
        for prompt, example in columns[-1].items()
        if all(prompt in column for column in columns)
    ]
    return {"stages": [stage.name for stage in shown], "problems": problems[:show]}


def _skips(stages: Sequence[Stage]) -> list[tuple[str, int, int]]:
    """Stages of which updates were left out: how many, of how many."""
    last = [(stage.name, stage.rows[-1]) for stage in stages if stage.rows]
    return [(name, row["skipped"], row["step"]) for name, row in last if row.get("skipped")]


def _left_out(data: dict[str, Any]) -> Iterator[str]:
    """What a stage did not learn from as it stands in its files, and why."""
    dropped = sum(data.get("dropped", {}).values())
    for count, what in (
        (dropped, "documents that hold a question of the evaluation"),
        (data.get("contaminated"), "conversations that hold a question of the evaluation"),
        (data.get("empty"), "conversations without a question or an answer"),
        (data.get("too_long"), "samples that are too long for a row"),
    ):
        if count:
            yield f"{count:,} {what}"
    if data.get("cut"):
        yield f"the ends of {data['cut']:,} samples that are longer than a row"


def _examples(stage: Stage) -> Iterator[dict[str, Any]]:
    for entry in stage.evaluations:
        yield from entry["examples"]


def _try(example: dict[str, Any]) -> dict[str, Any]:
    thinking, answer = split_completion(example["response"], thinking=True)
    return {"thinking": thinking.strip(), "answer": answer.strip(), "correct": example["correct"]}


def _bills(part: dict[str, Any]) -> list[dict[str, Any]]:
    return [*part["stages"], *part.get("abandoned", [])]


def _total(rows: list[dict[str, Any]]) -> dict[str, float]:
    keys = ("seconds", "tokens", "device_hours", "dollars")
    return {key: sum(row.get(key) or 0 for row in rows) for key in keys}


def _percent(value: float) -> str:
    return f"{value:.1%}"


def _interval(bounds: Sequence[float]) -> str:
    low, high = bounds
    return f"{low:.1%} to {high:.1%}"


def _plain(value: Any) -> str:
    """A setting or a fact as people write it."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(part)}" for key, part in value.items())
    return compact(value) if isinstance(value, float) else str(value)


def _without_none(value: Any) -> Any:
    """TOML has no null: what is None is left out, as in a recipe."""
    if isinstance(value, dict):
        return {key: _without_none(part) for key, part in value.items() if part is not None}
    return [_without_none(part) for part in value] if isinstance(value, list) else value
