"""How a file becomes documents: a reader yields (document, place after it) from a given place on.

A place is an int: a byte offset in text and JSON lines (unpacked, where a file is compressed), a row in Parquet;
0 is the file's beginning. Reading again from a yielded place gives exactly the documents that would have followed.
Nothing is read whole: a text longer than `PIECE` comes as several documents, cut at a line's end, and JSON rows above
`ROW` are refused, so a file may have any size.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from ziphius.text.compressed import open_bytes, unpacked_size
from ziphius.text.paths import kind_of

PIECE = 1 << 18  # bytes of the longest document of a text file: tens of thousands of tokens
ROW = 1 << 24  # bytes of the longest row of JSON
PARQUET_BATCH = 1024  # rows decoded at a time, at most


class Reader(Protocol):
    """How files of one kind are read."""

    def __call__(self, path: Path, place: int) -> Iterator[tuple[str, int]]:
        """The documents from `place` on, each with the place after it."""

    def extent(self, path: Path) -> int:
        """The place at the file's end."""


class FileReader(Reader, Protocol):
    """A reader of whole files, which knows where one can begin inside."""

    def spans(self, path: Path, starts: list[int], length: int) -> list[tuple[int, int]]:
        """Where to read for a sample: (from, until) in places, for about `length` bytes at each byte offset."""

    def starts(self, path: Path, step: int) -> list[int]:
        """Places, 0 first, at which a document begins, about `step` bytes from each to the next."""


class ByteReader(ABC):
    """What readers share whose places are byte offsets."""

    whole_lines = False  # whether a document is never a part of a line

    @abstractmethod
    def documents(self, file: IO[bytes], path: Path, place: int) -> Iterator[tuple[str, int]]:
        """The documents of an open file that stands at `place`; `path` is for errors."""

    def __call__(self, path: Path, place: int) -> Iterator[tuple[str, int]]:
        with open_bytes(path) as file:
            file.seek(place)
            yield from self.documents(file, path, place)

    def extent(self, path: Path) -> int:
        return unpacked_size(path)

    def spans(self, path: Path, starts: list[int], length: int) -> list[tuple[int, int]]:
        """Each begins at the first line after its offset; a text without one nearby is begun inside a line."""
        spans: list[tuple[int, int]] = []
        end = self.extent(path)
        with open_bytes(path) as file:
            for start in starts:
                place = self._line_start(file, start, length) if start else 0
                if place < end and (not spans or place >= spans[-1][1]):
                    spans.append((place, max(start + length, place + 1)))
        return spans

    def starts(self, path: Path, step: int) -> list[int]:
        """The first after each multiple of `step`."""
        found, end = [0], self.extent(path)
        with open_bytes(path) as file:
            for offset in range(step, end, step):
                if found[-1] < (place := self._document_start(file, offset)) < end:
                    found.append(place)
        return found

    def _document_start(self, file: IO[bytes], start: int) -> int:
        """The first place from a byte offset on at which a document may begin; that of the file's end for none."""
        file.seek(start - 1)
        ahead = len(file.readline(PIECE))
        return start - 1 + ahead if ahead < PIECE else self._line_start(file, start, PIECE)

    def _line_start(self, file: IO[bytes], start: int, nearby: int) -> int:
        file.seek(start - 1)
        line = file.readline(ROW if self.whole_lines else nearby)
        if line.endswith(b"\n") or self.whole_lines:
            return start - 1 + len(line)
        return start + next((skip for skip, byte in enumerate(line[1:]) if byte & 0xC0 != 0x80), 0)


@dataclass(frozen=True)
class TextFiles(ByteReader):
    """A whole text file is one document; a longer one than `piece` bytes is several."""

    piece: int = PIECE

    def documents(self, file: IO[bytes], path: Path, place: int) -> Iterator[tuple[str, int]]:
        rest = b""
        while data := rest + file.read(self.piece - len(rest)):
            cut = (data.rfind(b"\n") + 1 or _whole_characters(data)) if len(data) == self.piece else len(data)
            yield _decode(data[:cut], path, place), place + cut
            place, rest = place + cut, data[cut:]


class TextLines(ByteReader):
    """Each line of a text file is a document."""

    def documents(self, file: IO[bytes], path: Path, place: int) -> Iterator[tuple[str, int]]:
        for line, start, end in _lines(file, place):
            yield _decode(line, path, start).rstrip("\r\n"), end


class TextParagraphs(ByteReader):
    """Each run of lines between blank lines is a document; one longer than `PIECE` is several."""

    def _document_start(self, file: IO[bytes], start: int) -> int:
        place = super()._document_start(file, start)
        file.seek(place)
        for line, _, end in _lines(file, place):
            place = end
            if not line.strip() or end > start + PIECE:
                break
        return place

    def documents(self, file: IO[bytes], path: Path, place: int) -> Iterator[tuple[str, int]]:
        paragraph: list[str] = []
        size = 0
        for line, start, end in _lines(file, place):
            if paragraph and (size + len(line) > PIECE or not line.strip()):
                yield "".join(paragraph).rstrip("\r\n"), start
                paragraph, size = [], 0
            if line.strip():
                paragraph.append(_decode(line, path, start))
                size += len(line)
            place = end
        if paragraph:
            yield "".join(paragraph).rstrip("\r\n"), place


@dataclass(frozen=True)
class JsonLines(ByteReader):
    """Each line is a JSON object with the document under `field`; blank lines are passed over.

    Raises, while reading:
        ValueError: a line that is not such an object, as file:line and what is wrong.
    """

    field: str = "text"
    whole_lines = True

    def documents(self, file: IO[bytes], path: Path, place: int) -> Iterator[tuple[str, int]]:
        for row, start, end in self.rows(file, path, place):
            yield self.text(row, path, start), end

    def rows(self, file: IO[bytes], path: Path, place: int) -> Iterator[tuple[dict, int, int]]:
        """(the object of a line, its offset, the offset after it)."""
        while line := file.readline(ROW):
            start, place = place, place + len(line)
            if len(line) == ROW and not line.endswith(b"\n"):
                raise line_error(path, start, f"a row of more than {ROW >> 20} MiB; split it")
            if line.strip():
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, or nested without an end
                    raise line_error(path, start, f"not JSON: {error}") from error
                if not isinstance(row, dict):
                    raise line_error(path, start, f"a JSON {type(row).__name__} where an object is needed")
                yield row, start, place

    def text(self, row: dict, path: Path, start: int) -> str:
        """The document of a row."""
        if not isinstance(row.get(self.field), str):
            raise line_error(path, start, f"no string under {self.field!r}; the keys are {sorted(row)}")
        return whole_text(row[self.field], path, start)


@dataclass(frozen=True)
class Parquet:
    """Each row holds a document in `column`; nulls count as empty. Row groups before the place are not read.

    Raises, while reading:
        ValueError: not a Parquet file, no such column (the message lists those there are), or a column without text.
    """

    column: str = "text"

    def __call__(self, path: Path, place: int) -> Iterator[tuple[str, int]]:
        with self._open(path) as file:
            for first, group in self._groups(file):
                if place < first + file.metadata.row_group(group).num_rows:
                    try:
                        yield from self._rows(file, path, group, first, place)
                    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
                        raise ValueError(f"{path} is damaged in row group {group}: {error}") from error
                    place = first + file.metadata.row_group(group).num_rows

    def extent(self, path: Path) -> int:
        with self._open(path) as file:
            return file.metadata.num_rows

    def spans(self, path: Path, starts: list[int], length: int) -> list[tuple[int, int]]:
        """Rows from the beginning of row groups, since a group is decoded from there."""
        with self._open(path) as file:
            rows = file.metadata.num_rows
            each = -(-length * rows // max(1, path.stat().st_size))  # rows of a span
            wanted = [start * rows // max(1, path.stat().st_size) for start in starts]
            spans: list[tuple[int, int]] = []
            for first, group in self._groups(file):
                inside = sum(first <= row < first + file.metadata.row_group(group).num_rows for row in wanted)
                begin = max(first, spans[-1][1]) if spans else first
                if inside and begin < rows:
                    spans.append((begin, begin + inside * each))
            return spans

    def starts(self, path: Path, step: int) -> list[int]:
        """Those of row groups, of which small ones stay together."""
        found, size = [0], 0
        with self._open(path) as file:
            for first, group in self._groups(file):
                if size >= step:
                    found.append(first)
                    size = 0
                size += file.metadata.row_group(group).total_byte_size
        return found

    def _open(self, path: Path) -> pq.ParquetFile:
        try:
            file = pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)  # a page at a time, not a row group
        except (ValueError, OSError) as error:  # pyarrow.ArrowInvalid is a ValueError
            raise ValueError(f"{path} is not a Parquet file: {error}") from error
        if self.column not in file.schema_arrow.names:
            names = file.schema_arrow.names
            file.close()
            raise ValueError(f"{path} has no column {self.column!r}; its columns are {names}")
        return file

    def _groups(self, file: pq.ParquetFile) -> Iterator[tuple[int, int]]:
        """(its first row, the row group)."""
        first = 0
        for group in range(file.num_row_groups):
            yield first, group
            first += file.metadata.row_group(group).num_rows

    def _rows(self, file: pq.ParquetFile, path: Path, group: int, row: int, place: int) -> Iterator[tuple[str, int]]:
        about = file.metadata.row_group(group)
        batch_rows = max(1, min(PARQUET_BATCH, (1 << 20) * about.num_rows // max(1, about.total_byte_size)))
        for batch in file.iter_batches(batch_rows, row_groups=[group], columns=[self.column]):
            for document in batch.column(0).slice(max(0, place - row)).to_pylist():
                place += 1
                if not isinstance(document, str | None):
                    raise ValueError(f"{path}: column {self.column!r} holds {type(document).__name__}, not text")
                yield document or "", place
            row += batch.num_rows


def reader_for(path: Path, documents: str = "file", field: str = "text") -> FileReader:
    """The reader of a file, by its suffix; see `open_source`."""
    texts: dict[str, FileReader] = {"file": TextFiles(), "line": TextLines(), "paragraph": TextParagraphs()}
    if documents not in texts:
        raise ValueError(f"documents = {documents!r} must be one of {sorted(texts)}")
    text = texts[documents]
    readers: dict[str, FileReader] = {
        ".txt": text,
        ".md": text,
        ".jsonl": JsonLines(field),
        ".parquet": Parquet(field),
    }
    if kind_of(path) not in readers:
        raise ValueError(f"{path} is none of the kinds that can be read ({', '.join(readers)}); convert or rename it")
    return readers[kind_of(path)]


def whole_text(text: str, path: Path, start: int) -> str:
    """`text`, unless a JSON escape left half a character in it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise line_error(path, start, f"half a character, \\u{ord(text[error.start]):04x}; mend the escape") from None
    return text


def line_number(path: Path, start: int) -> int:
    """The number, from 1, of the line around a byte offset; only messages ask, so it may read the file."""
    number = 1
    with open_bytes(path) as file:
        while start > 0 and (data := file.read(min(PIECE, start))):
            number += data.count(b"\n")
            start -= len(data)
    return number


def line_error(path: Path, start: int, what: str) -> ValueError:
    """What is wrong with the line around a byte offset, as file:line."""
    return ValueError(f"{path}:{line_number(path, start)}: {what}")


def _lines(file: IO[bytes], place: int) -> Iterator[tuple[bytes, int, int]]:
    """(line with its newline, byte offset of its start, of its end); a line longer than `PIECE` comes in parts."""
    rest = b""
    while line := rest + file.readline(PIECE - len(rest)):
        cut = len(line) if len(line) < PIECE or line.endswith(b"\n") else _whole_characters(line)
        yield line[:cut], place, place + cut
        place, rest = place + cut, line[cut:]


def _whole_characters(data: bytes) -> int:
    """How many bytes to take so that no UTF-8 character is cut, a start byte being among the last four."""
    for back in range(1, 5):
        if data[-back] & 0xC0 != 0x80:
            return len(data) - back if data[-back] >= 0xC0 else len(data)
    return len(data)  # not UTF-8: decoding says so


def _decode(data: bytes, path: Path, start: int) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        at = start + error.start
        raise line_error(path, at, f"not UTF-8 at byte {at} ({error.reason}); save it as UTF-8") from error
