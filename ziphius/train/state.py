"""Everything a stopped run needs to go on to the same bits: written aside, flushed, renamed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

_FILE = "state.pt"


def write_atomically(path: Path, write: Any) -> None:
    """Call `write(file)` on a temporary neighbour, flush it to disk and put it in the place of `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with aside.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, strings, lists, dicts) to `folder/state.pt`."""
    write_atomically(folder / _FILE, lambda file: torch.save(state, file))


def load_state(folder: Path) -> dict[str, Any] | None:
    """The saved state, or None when there is none. Only tensors and plain values are read, never code."""
    path = folder / _FILE
    if not path.exists():
        return None
    return torch.load(path, weights_only=True)
