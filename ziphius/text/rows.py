"""Files of rows, each an object: JSON lines, a JSON list, Parquet. Nothing is read whole.

A place is where a row begins: the byte of it in JSON (unpacked, where the file is compressed), its number in Parquet.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ziphius.text.compressed import open_bytes
from ziphius.text.files import PARQUET_BATCH, ROW, JsonLines, line_error, line_number
from ziphius.text.paths import CHATS, kind_of

_BLOCK = 1 << 20
_BETWEEN = re.compile(r"[\s,\ufeff]*")


def read_rows(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """The rows of a file, each with its place.

    Raises, while reading:
        ValueError: another kind of file, or what is no row, as file:line and what is wrong.
    """
    match kind_of(path):
        case ".jsonl":
            with open_bytes(path) as file:
                for row, start, _ in JsonLines().rows(file, path, 0):
                    yield row, start
        case ".json":
            yield from _json(path)
        case ".parquet":
            yield from _parquet(path)
        case _:
            raise ValueError(f"{path} is none of the kinds that hold chats ({', '.join(CHATS)}); convert or rename it")


def where(path: Path, place: int) -> str:
    """A place as people look it up: file:line, or the row of a Parquet file, from 1."""
    return f"{path}, row {place + 1}" if kind_of(path) == ".parquet" else f"{path}:{line_number(path, place)}"


def count_rows(path: Path) -> int:
    """How many rows a file holds."""
    match kind_of(path):
        case ".parquet":
            return pq.read_metadata(path).num_rows
        case ".jsonl":
            with open_bytes(path) as file:
                return sum(bool(line.strip()) for line in iter(lambda: file.readline(ROW), b""))
    return sum(1 for _ in read_rows(path))


def _parquet(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    place = 0
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            bytes_ = sum(file.metadata.row_group(group).total_byte_size for group in range(file.num_row_groups))
            batch = max(1, min(PARQUET_BATCH, _BLOCK * file.metadata.num_rows // max(1, bytes_)))
            for table in file.iter_batches(batch):
                for row in table.to_pylist():
                    yield row, place
                    place += 1
    except (ValueError, pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read as Parquet: {error}") from error


def _json(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """The objects of a list; also objects one after another, since JSON lines are often called so."""
    decode = json.JSONDecoder().raw_decode
    with open_bytes(path) as file, io.TextIOWrapper(file, "utf-8", newline="") as text:
        held, at = _more(text, path, 0), 0  # characters read, and how many of them are done with
        place = 0  # the byte of held[at]
        is_list, ended = held.lstrip("\ufeff \t\r\n").startswith("["), False
        if is_list:
            at = held.index("[") + 1
            place = len(held[:at].encode())
        while True:
            start = _BETWEEN.match(held, at).end()  # type: ignore[union-attr]
            place, at = place + len(held[at:start].encode()), start
            if is_list and held[at : at + 1] == "]":
                is_list, ended, place, at = False, True, place + 1, at + 1
                continue
            if ended and at < len(held):
                raise line_error(path, place, "something stands behind the list; a .json file is one list of rows")
            try:
                row, end = decode(held, at)
            except json.JSONDecodeError as error:
                held, at = held[at:], 0
                cut = _is_cut(error, len(held) + start)
                more = _more(text, path, place) if cut and len(held) < ROW else ""
                if not (more or held or is_list):
                    return
                if not more:
                    what = "a row ends nowhere" if cut else str(error)
                    raise line_error(path, place, f"not JSON ({what}); a .json file is a list of rows") from None
                held += more
                continue
            except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists in lists without end
                raise line_error(path, place, f"not JSON that can be read: {error}") from None
            if not isinstance(row, dict):
                raise line_error(path, place, f"a JSON {type(row).__name__} where an object is needed")
            yield row, place
            place, at = place + len(held[at:end].encode()), end


def _more(text: io.TextIOWrapper, path: Path, place: int) -> str:
    try:
        return text.read(_BLOCK)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 after byte {place} ({error.reason}); save it as UTF-8") from error


def _is_cut(error: json.JSONDecodeError, length: int) -> bool:
    """Whether `length` characters may be wrong only because what was read so far ends inside a row."""
    if error.msg.startswith("Invalid control character"):
        return False
    return error.msg.startswith("Unterminated string") or error.pos >= length - 16
