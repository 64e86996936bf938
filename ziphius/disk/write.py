"""A file is written beside its place, flushed and renamed: a reader, and a kill, find the old one or the new one."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from ziphius.disk.errors import AGAIN, explained

LEFTOVERS = ".*.tmp"  # the glob of what `replacing` leaves behind when it is killed
_OWNER = re.compile(r"\.(\d+)\.tmp$")


@contextmanager
def replacing(path: Path, needed: int | None = None, then: str = AGAIN) -> Iterator[Path]:
    """Where to write the coming version of the file `path`; it takes its place when the block ends well.

    Raises DiskError, saying that `needed` bytes were to be written and what to do `then`, where the disk refuses.
    Nothing is left beside `path` but by a kill.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with explained(path, needed, then):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield aside
            flush(aside)
            aside.replace(path)
            flush(path.parent)
        finally:
            with suppress(OSError):
                aside.unlink(missing_ok=True)


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Call `write(file)` on a file beside `path` and put it in the place of `path`. Raises DiskError."""
    with replacing(path) as aside, aside.open("wb") as file:
        write(file)
        file.flush()


def write_text(path: Path, text: str) -> None:
    """Put a file that holds `text` (UTF-8) in the place of `path`. Raises DiskError."""
    write_atomically(path, lambda file: file.write(text.encode()))


def abandoned(leftover: Path) -> bool:
    """Whether the process that wrote `leftover` (one of `LEFTOVERS`) is gone, so that nobody will put it in place."""
    owner = _OWNER.search(leftover.name)
    if owner is None:
        return True
    pid = int(owner[1])
    return pid == os.getpid() or not is_alive(pid)  # this process is asking, so it is not writing


def is_alive(pid: int) -> bool:
    """Whether there is a process of that number, of whatever user."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
