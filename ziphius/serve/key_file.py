"""`ziphius key`: the file of keys changed by one at a time, whoever else wants to change it too. Imports no torch."""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ziphius.disk.errors import explained
from ziphius.disk.write import replacing
from ziphius.serve.wire.keys import Allowance, Key, hash_of, read_keys


def new_key(path: Path, name: str, allowance: Allowance | None = None) -> str:
    """Make a key, add its hash to `path` (made where there is none, readable by its owner alone), return the key."""
    if len(name.split()) != 1 or "#" in name or not name.isprintable() or len(name) > 64:
        raise ValueError(f"{name!r} is no name for a key; use one word without #, of 64 characters at most")
    key = f"zk-{secrets.token_urlsafe(32)}"
    with _changing(path) as lines:
        if any(_name(line) == name for line in lines):
            raise ValueError(f"{path} has a key called {name!r} already; take another name, or --delete that one")
        lines.append(Key(name, hash_of(key), allowance or Allowance()).line)
    return key


def delete_key(path: Path, name: str) -> None:
    """Take a key out of the file; a service that runs refuses it from its next request on."""
    with _changing(path) as lines:
        kept = [line for line in lines if _name(line) != name]
        if len(kept) == len(lines):
            raise ValueError(f"{path} has no key called {name!r}")
        lines[:] = kept


def list_keys(path: Path) -> list[str]:
    """A line for each key: its name and what it may use."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file of keys; make one with `ziphius key {path} NAME`")
    return [" ".join((key.name, *key.allowance.words)) for key in read_keys(path)]


@contextmanager
def _changing(path: Path) -> Iterator[list[str]]:
    """The file's lines, written back when the block ends well. Nobody else changes them meanwhile."""
    lock = path.with_name(f".{path.name}.lock")
    with explained(lock):
        path.parent.mkdir(parents=True, exist_ok=True)
        held = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        if path.exists():
            read_keys(path)  # a file that is damaged is not made worse
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        yield lines
        with (
            replacing(path) as aside,
            open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file,
        ):
            file.writelines(f"{line}\n" for line in lines)
    finally:
        os.close(held)


def _name(line: str) -> str | None:
    return next(iter(line.partition("#")[0].split()), None)
