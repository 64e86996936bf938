"""Where a stage's work lies: found by what the result depends on, and never in the place of other work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ziphius.ledger.folder import DONE, EVALUATION, KEPT_EVALUATIONS, SETTINGS, read_evaluation, write_json
from ziphius.recipe.identity import Identity, differences

_TRACES = ("state", "metrics.jsonl", "config.json", "tokenizer.json")  # of work that somebody may want to keep


@dataclass(frozen=True)
class StageFolder:
    """A stage's `folder`, what it is `of`, whether the stage is `done`, and a line on why it is this one."""

    folder: Path
    of: Identity
    done: bool
    why: str = ""


def find_stage_folder(run: Path, number: int, name: str, of: Identity, unread: Callable[[Path], bool]) -> StageFolder:
    """The folder in which stage `name` of a run is finished, was begun, or shall begin.

    `unread(folder)`: whether files that have changed since are the same up to where the work in `folder` has read them.
    """
    stages = run / "stages"
    folders = sorted(_folders(stages), key=_is_done, reverse=True)
    begun = {folder: known for folder in folders if (known := Identity.read(folder / SETTINGS))}
    for folder, known in begun.items():
        if known.print == of.print:
            return StageFolder(folder, of, _is_done(folder))
    for folder, known in begun.items():
        if known.settings_print == of.settings_print and unread(folder):
            changed = f"{name}: {differences(known, of)}, but not up to where this stage has read it"
            if _is_done(folder):
                return StageFolder(folder, known, True, f"{changed}: it stays")
            return StageFolder(folder, of, False, f"{changed}: it goes on")
    folder = stages / f"{number:02d}-{name}"
    if not _holds_work(folder):
        return StageFolder(folder, of, False)
    beside = stages / f"{folder.name}-{of.print[:6]}"
    known = begun.get(folder)
    what = differences(known, of) if known else "begun by an earlier version"
    return StageFolder(beside, of, False, f"{name}: {what}; begins in {beside.name}, and {folder.name} stays as it is")


def open_stage_folder(home: StageFolder) -> None:
    """Make the folder, and write down what it is of."""
    home.folder.mkdir(parents=True, exist_ok=True)
    write_json(home.folder / SETTINGS, home.of.as_dict())


def find_evaluation(folder: Path, of: Identity) -> tuple[bool, str]:
    """Whether `folder` holds this evaluation, which then is the present one, and a line where another has gone."""
    present, kept = folder / EVALUATION, folder / KEPT_EVALUATIONS / f"{of.print}.json"
    found = read_evaluation(folder)
    if found is not None and found["of"]["print"] == of.print:
        return True, ""
    why = ""
    if found is not None:
        (folder / KEPT_EVALUATIONS).mkdir(exist_ok=True)
        present.rename(folder / KEPT_EVALUATIONS / f"{found['of']['print']}.json")
        why = differences(Identity(found["of"]["settings"], found["of"]["files"]), of)
    if kept.exists():
        kept.rename(present)
        return True, ""
    return False, why


def _folders(stages: Path) -> Iterator[Path]:
    if stages.is_dir():
        yield from sorted(path for path in stages.iterdir() if path.is_dir())


def _is_done(folder: Path) -> bool:
    return (folder / DONE).exists()


def _holds_work(folder: Path) -> bool:
    return any((folder / name).exists() for name in _TRACES)
