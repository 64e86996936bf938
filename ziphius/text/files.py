"""How a file becomes documents: a reader yields (document, place after it) from a given place on.

A place is an int: a byte offset in text and JSON lines, a row in Parquet; 0 is the file's beginning. Reading again from
a yielded place gives exactly the documents that would have followed.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

Reader = Callable[[Path, int], Iterator[tuple[str, int]]]

PARQUET_BATCH = 1024  # rows decoded at a time


class TextFiles:
    """A whole text file is one document."""

    def __call__(self, path: Path, place: int) -> Iterator[tuple[str, int]]:
        data = path.read_bytes()[place:]
        if data:
            yield _decode(data, path, place), place + len(data)


class TextLines:
    """Each line of a text file is a document."""

    def __call__(self, path: Path, place: int) -> Iterator[tuple[str, int]]:
        for line, start, end in _lines(path, place):
            yield _decode(line, path, start).rstrip("\r\n"), end


class TextParagraphs:
    """Each run of lines between blank lines is a document."""

    def __call__(self, path: Path, place: int) -> Iterator[tuple[str, int]]:
        paragraph: list[str] = []
        end = place
        for line, start, end in _lines(path, place):
            if line.strip():
                paragraph.append(_decode(line, path, start))
            elif paragraph:
                yield "".join(paragraph).rstrip("\r\n"), end
                paragraph = []
        if paragraph:
            yield "".join(paragraph).rstrip("\r\n"), end


@dataclass(frozen=True)
class JsonLines:
    """Each line is a JSON object with the document under `field`; blank lines are passed over.

    Raises, while reading:
        ValueError: a line that is not such an object, as file:line and what is wrong.
    """

    field: str = "text"

    def __call__(self, path: Path, place: int) -> Iterator[tuple[str, int]]:
        for line, start, end in _lines(path, place):
            if line.strip():
                try:
                    yield self._document(line), end
                except ValueError as error:
                    raise ValueError(f"{path}:{_line_number(path, start)}: {error}") from error

    def _document(self, line: bytes) -> str:
        try:
            record = json.loads(line)
        except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are both ValueErrors
            raise ValueError(f"not JSON: {error}") from error
        if not isinstance(record, dict):
            raise ValueError(f"a JSON {type(record).__name__} where an object is needed")
        if not isinstance(record.get(self.field), str):
            raise ValueError(f"no string under {self.field!r}; the keys are {sorted(record)}")
        return record[self.field]


@dataclass(frozen=True)
class Parquet:
    """Each row holds a document in `column`; nulls count as empty. Row groups before the place are not read.

    Raises, while reading:
        ValueError: not a Parquet file, no such column (the message lists those there are), or a column without text.
    """

    column: str = "text"

    def __call__(self, path: Path, place: int) -> Iterator[tuple[str, int]]:
        try:
            file = pq.ParquetFile(path)
        except (ValueError, OSError) as error:  # pyarrow.ArrowInvalid is a ValueError
            raise ValueError(f"{path} is not a Parquet file: {error}") from error
        with file:
            if self.column not in file.schema_arrow.names:
                raise ValueError(f"{path} has no column {self.column!r}; its columns are {file.schema_arrow.names}")
            group, row = 0, 0  # the first row of the group that holds the place
            while group < file.num_row_groups and row + file.metadata.row_group(group).num_rows <= place:
                row += file.metadata.row_group(group).num_rows
                group += 1
            groups = range(group, file.num_row_groups)
            for batch in file.iter_batches(PARQUET_BATCH, row_groups=groups, columns=[self.column]):
                for document in batch.column(0).slice(max(0, place - row)).to_pylist():
                    place += 1
                    if not isinstance(document, str | None):
                        raise ValueError(f"{path}: column {self.column!r} holds {type(document).__name__}, not text")
                    yield document or "", place
                row += batch.num_rows


def _lines(path: Path, place: int) -> Iterator[tuple[bytes, int, int]]:
    """(line with its newline, byte offset of its start, of its end)."""
    with open(path, "rb") as file:
        file.seek(place)
        for line in file:
            yield line, place, place + len(line)
            place += len(line)


def _decode(data: bytes, path: Path, start: int) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {start + error.start}: {error.reason}") from error


def _line_number(path: Path, place: int) -> int:
    """The number, from 1, of the line that starts at a byte offset; only errors ask for it, so it may read the file."""
    with open(path, "rb") as file:
        return file.read(place).count(b"\n") + 1
