"""Several files of one folder replaced as one step.

New files are written beside the old ones as `.new-NAME` and flushed. Then a journal, put in place by one rename, says
what is to happen: a kill before it leaves the old set, a kill after it leaves work that whoever opens the folder next
completes. The file named last goes away first and comes back last, so that a reader that knows no journal finds a
folder without it instead of a mixture. Other files of the folder are never touched.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

_JOURNAL = ".commit.json"
_STAGED = ".new-"


def staged(folder: Path, name: str) -> Path:
    """Where to write the coming version of `name`."""
    return folder / f"{_STAGED}{name}"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write the coming version of the single file `path`; it takes its place when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = staged(path.parent, f"{path.name}.{os.getpid()}")
    try:
        yield aside
        _flush(aside)
        aside.replace(path)
        _flush(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def discard_staged(folder: Path) -> None:
    """Forget what a killed writer left behind without committing."""
    for leftover in folder.glob(f"{_STAGED}*"):
        leftover.unlink()


def commit(folder: Path, names: list[str], remove: list[str]) -> None:
    """Put the staged files `names` in place and delete `remove`, all or nothing across a kill."""
    for name in names:
        _flush(staged(folder, name))
    journal = folder / _JOURNAL
    draft = staged(folder, _JOURNAL)
    draft.write_text(json.dumps({"names": names, "remove": remove}))
    _flush(draft)
    _flush(folder)
    draft.replace(journal)
    _flush(folder)
    complete(folder)


def complete(folder: Path) -> None:
    """Finish a commit that was begun in `folder`; does nothing when there is none. Safe beside its own writer."""
    journal = folder / _JOURNAL
    if not journal.exists():
        return
    with journal.open("r+") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        if not journal.exists():  # another process completed it while this one waited
            return
        plan = json.load(handle)
        *names, last = plan["names"]
        if staged(folder, last).exists():
            (folder / last).unlink(missing_ok=True)
        for name in plan["remove"]:
            (folder / name).unlink(missing_ok=True)
        for name in (*names, last):
            with contextlib.suppress(FileNotFoundError):
                staged(folder, name).replace(folder / name)
        _flush(folder)
        journal.unlink()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
