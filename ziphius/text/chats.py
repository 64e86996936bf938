"""Chats to imitate: each line of a `.jsonl` file is an object with a `prompt` and a `response`."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ziphius.text.files import JsonLines, line_error, whole_text


@dataclass(frozen=True)
class Chat:
    """One exchange, and the byte offset of its line."""

    prompt: str
    response: str
    start: int


@dataclass(frozen=True)
class Chats(JsonLines):
    """The reader of such a file, for `inspect`; its documents are the responses."""

    field: str = "response"

    def text(self, row: dict, path: Path, start: int) -> str:
        return pair(row, path, start)[1]


def pair(row: dict, path: Path, start: int) -> tuple[str, str]:
    """(prompt, response) of a row; ValueError, with file:line, where one is missing, empty or not text."""
    for key in ("prompt", "response"):
        if not isinstance(row.get(key), str) or not row[key].strip():
            what = "is empty" if isinstance(row.get(key), str) else "is not text" if key in row else "is missing"
            raise line_error(path, start, f"{key!r} {what}; each line needs a prompt and a response")
    return whole_text(row["prompt"], path, start), whole_text(row["response"], path, start)


def read_chats(path: Path) -> Iterator[Chat]:
    """The chats of a file, in its order; ValueError as `pair` and `JsonLines` say."""
    with open(path, "rb") as file:
        for row, start, _ in Chats().rows(file, path, 0):
            yield Chat(*pair(row, path, start), start)
