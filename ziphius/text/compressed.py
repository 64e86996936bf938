"""Files as bytes, whether they lie plain on the disk or compressed: `.gz`, `.bz2`, `.zst` and `.xz` are opened alike.

A place in a compressed file is a byte of what it holds. Going there means unpacking all before it, forwards only.
"""

from __future__ import annotations

import io
import lzma
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import pyarrow

from ziphius.text.paths import is_compressed

_BLOCK = 1 << 20
_OPEN: dict[str, Callable[[Path], Any]] = {
    ".gz": lambda path: pyarrow.input_stream(str(path), compression="gzip"),
    ".bz2": lambda path: pyarrow.input_stream(str(path), compression="bz2"),
    ".zst": lambda path: pyarrow.input_stream(str(path), compression="zstd"),
    ".xz": lzma.open,
}


def open_bytes(path: Path) -> IO[bytes]:
    """What a file holds, for reading and for seeking forwards.

    Raises, while reading:
        ValueError: a compressed file that is none or is cut short.
    """
    return io.BufferedReader(_Unpacked(path), _BLOCK) if is_compressed(path) else open(path, "rb")


def unpacked_size(path: Path) -> int:
    """How many bytes a file holds. A compressed one is unpacked for this, once a process."""
    stat = path.stat()
    return _count(path, stat.st_size, stat.st_mtime_ns) if is_compressed(path) else stat.st_size


@lru_cache(maxsize=4096)
def _count(path: Path, size: int, changed: int) -> int:
    with open_bytes(path) as file:
        return sum(map(len, iter(lambda: file.read(_BLOCK), b"")))


class _Unpacked(io.RawIOBase):
    """The bytes of a compressed file, with a place that can be moved forwards."""

    def __init__(self, path: Path) -> None:
        self._path, self._place = path, 0
        self._file = _OPEN[path.suffix](path)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._file.read(len(buffer))
        except (OSError, EOFError, lzma.LZMAError) as error:  # pyarrow.ArrowIOError is an OSError
            raise ValueError(f"{self._path} is damaged or not compressed as its suffix says: {error}") from error
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)

    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_SET or place < self._place:
            raise io.UnsupportedOperation(f"{self._path}: a compressed file is read forwards only")
        block = memoryview(bytearray(_BLOCK))
        while self._place < place and self.readinto(block[: place - self._place]):
            pass
        return self._place

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
