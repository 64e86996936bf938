"""Chats to imitate: conversations in one of the known forms, which each file's first row shows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ziphius.text.forms.conversation import Conversation
from ziphius.text.forms.registry import Form, form_of
from ziphius.text.rows import count_rows, read_rows, where


@dataclass(frozen=True)
class Chats:
    """The reader of such a file for `check.inspect`; its documents are the conversations, blank where one is empty."""

    def __call__(self, path: Path, place: int) -> Iterator[tuple[str, int]]:
        for chat, start in read_chats(path):
            if start >= place:
                yield "" if chat.is_empty else chat.text, start + 1

    def extent(self, path: Path) -> int:
        return count_rows(path)


def read_chats(path: Path) -> Iterator[tuple[Conversation, int]]:
    """The conversations of a file in its order, each with the place of its row.

    Raises, while reading:
        ValueError: a row that is none, or is of no form or another one than the first; file:line and what is wrong.
    """
    form: Form | None = None
    for row, place in read_rows(path):
        try:
            form = form or form_of(row)
            chat = form.read(row)
        except ValueError as error:
            says = f" (the file's form is {form.name})" if form else ""
            raise ValueError(f"{where(path, place)}: {error}{says}") from None
        yield chat, place


def form_name(path: Path) -> str:
    """What the form of a file is called; empty for a file without rows. Raises as `read_chats` does."""
    for row, place in read_rows(path):
        try:
            return form_of(row).name
        except ValueError as error:
            raise ValueError(f"{where(path, place)}: {error}") from None
    return ""
