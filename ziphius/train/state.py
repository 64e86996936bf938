"""Everything a stopped run needs to go on to the same bits, kept so that a kill or a bad disk costs one save at most.

`state/step-00000120.pt` holds the tensors. `step-00000120.json` beside it says what they must be (length and checksum),
which network they belong to, and how far the training had come. The JSON is put in place first; the renaming of the
.pt file, after both are on the disk, makes the save. Then older ones go, but for the last `KEEP`.
"""

from __future__ import annotations

import json
import pickle
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch

from ziphius.disk.checksum import crc32_of
from ziphius.disk.errors import AGAIN, explained
from ziphius.disk.write import flush, replacing, write_text

KEEP = 2
_FORMAT = 1
_BEFORE_CHECKSUMS = "state.pt"  # what earlier versions wrote, one file and no JSON; still read


class StateError(ValueError):
    """Saved states of which none is good: one line naming each file, what is wrong with it, and the mend."""


@dataclass
class Found:
    """The newest good state of a folder, None where nothing was saved, and what is wrong with the newer ones."""

    path: Path | None = None
    state: dict[str, Any] | None = None
    bad: dict[Path, str] = field(default_factory=dict)


def save_state(
    folder: Path, state: dict[str, Any], network: Mapping[str, Any] | None = None, then: str = AGAIN
) -> None:
    """Write `state` (tensors, numbers, strings, lists, dicts; `progress` with its `step`) into `folder`.

    Which device its tensors are on is not written: it can be read where there is no such one.
    `network` (plain values) is what `find_state` holds against its own. Raises DiskError, with the bytes needed, what
    is free and what to do `then`; the earlier saves are still there.
    """
    path = folder / f"step-{state['progress']['step']:08d}.pt"
    with explained(folder, then=then):
        with replacing(path, tensor_bytes(state), then) as aside:
            with aside.open("wb") as file:
                checked = _Checked(file)
                checked.save(_on_cpu(state))
            flush(aside)
            about = {
                "format": _FORMAT,
                "bytes": checked.length,
                "crc32": checked.sum,
                "network": dict(network or {}),
                "progress": state["progress"],
            }
            write_text(_about(path), json.dumps(about))
        _forget_older(folder)


def find_state(folder: Path, network: Mapping[str, Any] | None = None) -> Found:
    """The newest state in `folder` that is whole and, where `network` is given, of that network; see `Found`.

    Reads every byte of it. Raises StateError where there are states and none is good.
    """
    found = Found()
    for path in _saves(folder):
        try:
            found.state, found.path = _read_checked(path, network), path
            return found
        except StateError as error:
            found.bad[path] = str(error)
    if found.bad:
        raise StateError(
            f"{'; '.join(found.bad.values())}: no good state is left to go on from; put a copy back, or remove "
            f"{folder} to begin the stage anew"
        )
    return found


def read_state(path: Path) -> dict[str, Any]:
    """The state in one file, on the processor. Only tensors and plain values are read, never code."""
    return torch.load(path, map_location="cpu", weights_only=True)


def set_aside(path: Path) -> Path:
    """Take a bad state out of the row, kept under another name; which."""
    for file in (_about(path), path):
        if file.exists():
            file.replace(_bad_name(file))
    return _bad_name(path)


def tensor_bytes(value: Any) -> int:
    """Bytes of all tensors in nested dicts and lists: nearly all of what saving them takes."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return 0
    return sum(map(tensor_bytes, value))


def _on_cpu(value: Any) -> Any:
    """Nested dicts and lists with all tensors in the processor's memory."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, Mapping):
        return {key: _on_cpu(part) for key, part in value.items()}
    return type(value)(map(_on_cpu, value)) if isinstance(value, list | tuple) else value


def saved_bytes(folder: Path) -> int:
    """What the saves in `folder` take on the disk."""
    return sum(path.stat().st_size for path in _saves(folder))


# --- one save --------------------------------------------------------------------------------------------------------


class _Checked:
    """A file that torch.save writes into: counts and sums the bytes (`crc32_of`) as they pass."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.length, self.sum = file, 0, 0
        self._refused: OSError | None = None

    def save(self, state: dict[str, Any]) -> None:
        try:
            torch.save(state, self)  # type: ignore[arg-type]
            self.file.flush()
        except RuntimeError:
            if self._refused is None:
                raise
            raise self._refused from None  # torch only says that its writer is at an unexpected place

    def write(self, data: bytes) -> int:
        try:
            self.file.write(data)
        except OSError as error:
            self._refused = error
            raise
        self.length += len(data)
        self.sum = zlib.crc32(data, self.sum)
        return len(data)

    def flush(self) -> None:
        self.file.flush()


def _read_checked(path: Path, network: Mapping[str, Any] | None) -> dict[str, Any]:
    """The state in `path`. Raises StateError saying what is wrong with it."""
    try:
        if path.name != _BEFORE_CHECKSUMS:
            _check(path, network)
        return read_state(path)
    except OSError as error:
        raise StateError(f"{path} cannot be read ({error.strerror})") from error
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise StateError(f"{path} is no state, or was cut short") from error


def _check(path: Path, network: Mapping[str, Any] | None) -> None:
    about = _read_about(path)
    if about is None:
        raise StateError(f"{path} has no {_about(path).name} beside it that says what it must be")
    if about["format"] != _FORMAT:
        raise StateError(f"{path} is of format {about['format']}, and this version reads {_FORMAT}")
    if network is not None and about["network"] != network:
        raise StateError(f"{path} is of another network ({_differences(about['network'], network)})")
    length = path.stat().st_size
    if length != about["bytes"]:
        how = "cut short" if length < about["bytes"] else "too long"
        raise StateError(f"{path} is {how} ({length:,} bytes of {about['bytes']:,})")
    if crc32_of(path) != about["crc32"]:
        raise StateError(f"{path} is damaged (its checksum differs)")


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    keys = [key for key in ours if theirs.get(key) != ours[key]]
    return ", ".join(f"{key}: {theirs.get(key, 'unknown')} where this one has {ours[key]}" for key in keys)


# --- the files of a folder -------------------------------------------------------------------------------------------


def _saves(folder: Path) -> list[Path]:
    """The newest first."""
    earlier = folder / _BEFORE_CHECKSUMS
    return sorted(folder.glob("step-*.pt"), reverse=True) + [earlier] * earlier.exists()


def _forget_older(folder: Path) -> None:
    for path in _saves(folder)[KEEP:]:
        path.unlink()
    for about in folder.glob("step-*.json"):
        if not about.with_suffix(".pt").exists():
            about.unlink()


def _about(path: Path) -> Path:
    return path.with_suffix(".json")


def _read_about(path: Path) -> dict[str, Any] | None:
    try:
        about = json.loads(_about(path).read_text())
        return about if {"format", "bytes", "crc32", "network", "progress"} <= about.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def _bad_name(path: Path) -> Path:
    return path.with_name(f"{path.name}.bad")
