"""A sample of files by bytes: chunks spread evenly over all of them, so that a tokenizer may learn from any size."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ziphius.text.compressed import unpacked_size
from ziphius.text.files import FileReader, Reader, TextFiles
from ziphius.text.paths import is_compressed

CHUNK = 1 << 16  # bytes
SMALLEST_CHUNK = 1 << 12


@dataclass(frozen=True)
class Span:
    """Reads a part of a file: the documents that begin from place `begin` on and before `end`."""

    reader: Reader
    begin: int
    end: int
    size: int  # in bytes, about

    def __call__(self, path: Path, place: int) -> Iterator[tuple[str, int]]:
        place = max(place, self.begin)
        if place < self.end:
            for document, after in self.reader(path, place):
                yield document, after
                if after >= self.end:
                    return

    def extent(self, path: Path) -> int:
        return min(self.end, self.reader.extent(path))


@dataclass(frozen=True)
class Sieve:
    """Reads the documents that begin in the first `chunk` places of every `step`, the first of them at `ahead`.

    For a file that is only read forwards: one pass, where a `Span` each would unpack it as often as there are spans.
    """

    reader: Reader
    ahead: int
    step: int
    chunk: int

    def __call__(self, path: Path, place: int) -> Iterator[tuple[str, int]]:
        for document, after in self.reader(path, place):
            if place >= self.ahead and (place - self.ahead) % self.step < self.chunk:
                yield document, after
            place = after

    def extent(self, path: Path) -> int:
        return self.reader.extent(path)


def spread(files: Sequence[tuple[Path, FileReader]], size: int) -> list[tuple[Path, Reader]]:
    """About `size` bytes of some files, as parts to read; all of them where they have no more than that.

    The parts are chunks at even distances over the files laid end to end, so that each byte is as likely as another.
    """
    sizes = [unpacked_size(path) for path, _ in files]
    total = sum(sizes)
    if total <= size:
        return list(files)
    chunk = min(CHUNK, max(SMALLEST_CHUNK, total // len(files)))
    step = -(-total * chunk // size)  # from one chunk's beginning to the next's
    parts: list[tuple[Path, Reader]] = []
    ahead = 0  # bytes from the file's beginning to the next chunk's
    for (path, reader), length in zip(files, sizes, strict=True):
        starts = list(range(ahead, length, step))
        ahead += len(starts) * step - length
        if starts:
            if isinstance(reader, TextFiles):
                reader = TextFiles(chunk // 4)  # so that what stands over the end is little
            if is_compressed(path):
                parts.append((path, Sieve(reader, starts[0], step, chunk)))
                continue
            parts += [(path, Span(reader, begin, end, chunk)) for begin, end in reader.spans(path, starts, chunk)]
    return parts
