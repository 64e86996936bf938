"""`ziphius clean`: what other settings left in a run's folder, and its end. Imports no torch."""

from __future__ import annotations

import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ziphius.ledger.folder import DONE, KEPT_EVALUATIONS, SETTINGS, kept_stages, parts, present_stages, read_json
from ziphius.recipe.identity import Identity, differences
from ziphius.recipe.lock import Lock
from ziphius.recipe.schema import RecipeError

_OLD_VERSIONS = "replaced"  # where versions before this one moved stages to


@dataclass(frozen=True)
class Leftover:
    """A folder that the present recipe does not use, its size, and what it is."""

    folder: Path
    bytes: int
    what: str


def leftovers(run: Path) -> list[Leftover]:
    """All that `clean` would delete. Raises ValueError where `run` is no run folder."""
    present_stages(run)
    found = []
    for part in parts(run):
        by_name = {_name(folder): folder for folder in present_stages(part)}
        found += [(folder, _what(folder, by_name.get(_name(folder)))) for folder in kept_stages(part)]
        asked = [folder / KEPT_EVALUATIONS for folder in present_stages(part)]
        found += [(folder, "evaluations with other settings") for folder in asked if folder.is_dir()]
    old = run / _OLD_VERSIONS
    found += [(old, "set aside by an earlier version")] if old.is_dir() else []
    return [Leftover(folder, _size(folder), what) for folder, what in found]


def clean(run: Path, really: bool) -> None:
    """Show what the present recipe does not use; with `really` delete it. What it cost stays on the bill."""
    lock = Lock(run) if run.is_dir() else None
    if lock is not None and (refusal := lock.take()):
        raise RecipeError(refusal)
    try:
        _clean(run, really)
    finally:
        if lock is not None:
            lock.release()


def _clean(run: Path, really: bool) -> None:
    console = Console()
    found = leftovers(run)
    if not found:
        console.print(f"{run}: nothing to clean; all in it belongs to the present recipe")
        return
    table = Table("folder", "MiB", "what")
    for each in found:
        table.add_row(str(each.folder.relative_to(run)), f"{each.bytes / 2**20:.1f}", each.what)
        if really:
            shutil.rmtree(each.folder)
    console.print(table)
    total = f"{sum(each.bytes for each in found) / 2**20:.1f} MiB"
    again = f"ziphius clean {shlex.quote(str(run))} --yes"
    console.print(f"{total} deleted" if really else f"Nothing was deleted; `{again}` frees {total}", soft_wrap=True)


def _name(folder: Path) -> str:
    """A stage's name without number and hash, as far as a folder tells it."""
    about = read_json(folder / DONE)
    return about["name"] if about else folder.name.partition("-")[2]


def _what(folder: Path, present: Path | None) -> str:
    state = "finished" if (folder / DONE).exists() else "unfinished"
    mine = Identity.read(folder / SETTINGS)
    if mine is None:
        return f"{state}, made by an earlier version"
    its = Identity.read(present / SETTINGS) if present else None
    return f"{state}; {differences(mine, its)} now" if its else f"{state}; the recipe has no such stage now"


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
