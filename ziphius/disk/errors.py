"""What a disk that takes no more says: one sentence with what it was, how much was needed, what is free, the mend."""

from __future__ import annotations

import errno
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

AGAIN = "run the same command again"


class DiskError(ValueError):
    """A file that could not be written, for a reason outside this program: one line with the mend."""


@contextmanager
def explained(path: Path, needed: int | None = None, then: str = AGAIN) -> Iterator[None]:
    """Turn an OSError of the block, which writes `path` (`needed` bytes), into a DiskError where its cause is known."""
    try:
        yield
    except OSError as error:
        sentence = explain(error, path, needed, then)
        if sentence is None:
            raise
        raise DiskError(sentence) from error


def explain(error: OSError, path: Path | None = None, needed: int | None = None, then: str = AGAIN) -> str | None:
    """The sentence for `error`, or None where it is not the disk, a right or a limit that is to blame.

    `path` is what was being written where the error itself does not say.
    """
    file = Path(error.filename) if isinstance(error.filename, str) else path
    name = file if file is not None else "a file"
    folder = nearest_folder(file) if file is not None else Path()
    saving = f"saving {name}" + (f" needs {size(needed)}" if needed else "")
    match error.errno:
        case errno.ENOSPC:
            return f"the disk of {folder} is full: {saving}, {size(free_bytes(folder))} are free; make room and {then}"
        case errno.EDQUOT:
            return f"the quota on the disk of {folder} is used up: {saving}; make room or raise it, and {then}"
        case errno.EROFS:
            return f"the disk of {folder} is read-only: {saving}; mount it for writing or choose another, and {then}"
        case errno.EACCES | errno.EPERM:
            return f"{name} may not be used by this user; change its owner or mode (chown, chmod), and {then}"
        case errno.EFBIG:
            limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
            most = "the file system" if limit == resource.RLIM_INFINITY else f"ulimit -f, {size(limit)},"
            return f"{most} allows no larger file: {saving}; raise the limit or choose another disk, and {then}"
        case errno.EMFILE | errno.ENFILE:
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            return f"too many files are open (ulimit -n is {limit}) to open {name}; raise the limit and {then}"
        case errno.ENOTDIR | errno.EEXIST:
            return f"{name} cannot be a folder, for a file stands in its place; move that away and {then}"
        case errno.EIO:
            return f"the disk of {folder} fails ({error.strerror}): {saving}; look at the disk (dmesg), and {then}"
    return None


def free_bytes(folder: Path) -> int:
    """What this user may still write on the disk of `folder`, which need not exist yet."""
    return shutil.disk_usage(nearest_folder(folder)).free


def nearest_folder(path: Path) -> Path:
    """`path` itself where it is a folder, else the first folder above it that exists."""
    return next((folder for folder in (path, *path.absolute().parents) if folder.is_dir()), Path("/"))


def size(count: int) -> str:
    """A number of bytes as people write it."""
    value = float(count)
    for unit in ("bytes", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"
