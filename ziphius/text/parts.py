"""Large files in parts that are read in any order, so that what is sorted in a file is not learned in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO

from ziphius.text.compressed import open_bytes
from ziphius.text.files import ByteReader, FileReader, Reader
from ziphius.text.paths import is_compressed
from ziphius.text.sampling import Span

PART = 1 << 18  # bytes: a shuffle buffer of 4M characters holds documents of sixteen places in the files at least,
MOST_PARTS = 1 << 16  # until there are so many: their order, and the place in each, are held in memory


@dataclass(frozen=True)
class Part(Span):
    """Reads the documents of a file between two places at each of which a document begins."""

    reader: ByteReader

    def __call__(self, path: Path, place: int) -> Iterator[tuple[str, int]]:
        place = max(place, self.begin)
        with open_bytes(path) as file:
            file.seek(place)
            yield from self.reader.documents(_Until(file, self.end - place), path, place)  # type: ignore[arg-type]


class _Until:
    """An open file that ends after `left` bytes."""

    def __init__(self, file: IO[bytes], left: int) -> None:
        self._file, self._left = file, left

    def read(self, size: int) -> bytes:
        return self._take(self._file.read(min(size, self._left)))

    def readline(self, size: int) -> bytes:
        return self._take(self._file.readline(min(size, self._left)))

    def _take(self, data: bytes) -> bytes:
        self._left -= len(data)
        return data


def cut(files: Sequence[tuple[Path, FileReader]]) -> list[tuple[Path, Reader]]:
    """The same documents, those of large files in parts.

    A compressed file stays whole, since it can only be read from its beginning; of Parquet a part is one row group or
    several.
    """
    part = max(PART, sum(path.stat().st_size for path, _ in files) // MOST_PARTS)
    parts: list[tuple[Path, Reader]] = []
    for path, reader in files:
        size = path.stat().st_size
        starts = [0] if is_compressed(path) or size <= part else reader.starts(path, part)
        if len(starts) == 1:
            parts.append((path, reader))
            continue
        end = reader.extent(path)
        for begin, after in pairwise([*starts, end]):
            bytes_ = max(1, (after - begin) * size // end)
            if isinstance(reader, ByteReader):
                parts.append((path, Part(reader, begin, after, bytes_)))
            else:
                parts.append((path, Span(reader, begin, after, bytes_)))
    return parts
