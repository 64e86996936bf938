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
from collections.abc import Iterator
from pathlib import Path

from ziphius.disk.errors import explained
from ziphius.disk.write import LEFTOVERS, abandoned, flush

_JOURNAL = ".commit.json"
_STAGED = ".new-"
_SHARD_DRAFT = ".tmp??????"  # what safetensors writes before it renames, left behind by a kill


def staged(folder: Path, name: str) -> Path:
    """Where to write the coming version of `name`."""
    return folder / f"{_STAGED}{name}"


@contextlib.contextmanager
def staging(folder: Path, needed: int) -> Iterator[None]:
    """Around the staging and the commit of `needed` bytes in `folder`: what is staged goes when they fail.

    Raises DiskError where the disk refuses.
    """
    with explained(folder, needed):
        folder.mkdir(parents=True, exist_ok=True)
        complete(folder)
        discard_staged(folder)
        try:
            yield
        except BaseException:
            if not (folder / _JOURNAL).exists():  # with a journal it is decided, and the next to open completes it
                discard_staged(folder)
            raise


def discard_staged(folder: Path) -> None:
    """Forget what a writer that was killed, or failed, left behind without committing."""
    for pattern in (f"{_STAGED}*", _SHARD_DRAFT):
        for leftover in folder.glob(pattern):
            leftover.unlink(missing_ok=True)


def sweep(folder: Path) -> int:
    """Clear everything that killed writers left in and below `folder`, which the caller alone writes to; how many.

    Commits that were decided on are completed. A single file that a living process is writing stays.
    """
    leftovers = [*folder.rglob(f"{_STAGED}*"), *folder.rglob(_SHARD_DRAFT)]
    for journal in [*folder.rglob(_JOURNAL)]:
        complete(journal.parent)
    leftovers += [path for path in folder.rglob(LEFTOVERS) if abandoned(path)]
    found = [path for path in leftovers if path.is_file()]
    for path in found:
        path.unlink(missing_ok=True)
    return len(found)


def commit(folder: Path, names: list[str], remove: list[str]) -> None:
    """Put the staged files `names` in place and delete `remove`, all or nothing across a kill."""
    for name in names:
        flush(staged(folder, name))
    journal = folder / _JOURNAL
    draft = staged(folder, _JOURNAL)
    draft.write_text(json.dumps({"names": names, "remove": remove}))
    flush(draft)
    flush(folder)
    draft.replace(journal)
    flush(folder)
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
        flush(folder)
        journal.unlink()
