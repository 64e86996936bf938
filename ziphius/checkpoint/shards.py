"""The safetensors files of a folder: read tensor by tensor, written in shards with an index."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ziphius.checkpoint.commit import staged
from ziphius.checkpoint.errors import CheckpointError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


class ShardReader:
    """Every tensor of a folder by name. Headers are read on entry, values one at a time when asked for.

    Raises CheckpointError naming the file that is missing, cut short, or listed and not there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file_of: dict[str, str] = {}
        self._open: dict[str, Any] = {}

    def __enter__(self) -> ShardReader:
        for file in _files(self.folder):
            try:
                handle = safe_open(self.folder / file, framework="pt")
            except SafetensorError as error:
                raise CheckpointError(
                    f"{self.folder / file} is cut short or not a safetensors file ({error}); copy it again"
                ) from None
            self._open[file] = handle.__enter__()
            self._file_of |= dict.fromkeys(handle.keys(), file)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for handle in self._open.values():
            handle.__exit__(kind, error, tb)

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def __iter__(self) -> Iterator[str]:
        """Names in the order of the files, so that reading them so walks each file once."""
        return iter(self._file_of)

    @property
    def files(self) -> list[Path]:
        return [self.folder / file for file in self._open]

    def file(self, name: str) -> str:
        return self._file_of[name]

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._open[self._file_of[name]].get_slice(name).get_shape())

    def tensor(self, name: str, at: tuple[int | slice, ...] = ()) -> Tensor:
        """The tensor `name`, a view of the file's map, which lives as long as it: read from disk where it is touched,
        never written. What lies `at` these indices of it is a copy; no more than that is read."""
        handle = self._open[self._file_of[name]]
        return handle.get_slice(name)[at] if at else handle.get_tensor(name)


def stage_shards(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[str], Tensor],
    max_shard_bytes: int,
    dtype_of: Mapping[str, torch.dtype],
) -> list[str]:
    """Write the tensors of `shapes` beside the folder's files and return the names that `commit` has to put in place.

    Tensors follow each other into shards of at most `max_shard_bytes` (a larger tensor has one for itself). Each is
    asked of `read(name)` as its shard is written, and converted to `dtype_of[name]`. One shard is called
    `model.safetensors` and has no index.
    """
    shards: list[list[str]] = [[]]
    room, total = max_shard_bytes, 0
    for name, shape in shapes.items():
        size = math.prod(shape) * dtype_of[name].itemsize
        if size > room and shards[-1]:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(name)
        room -= size
        total += size
    count = len(shards)
    files = [SINGLE] if count == 1 else [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    for file, shard in zip(files, shards, strict=True):
        # A copy each: published tensors may be parts or repeats of one of ours, and safetensors refuses shared memory.
        ready = {name: read(name).detach().to("cpu", dtype_of[name], copy=True).contiguous() for name in shard}
        _save(ready, staged(folder, file))
    if count == 1:
        return files
    weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    staged(folder, INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return [*files, INDEX]


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    """`save_file`, whose errors hide the system's number in their text, with an OSError in their place."""
    try:
        path.touch()
        mode = path.stat().st_mode
        save_file(tensors, path, metadata={"format": "pt"})
        path.chmod(mode)  # it makes files that no other user may read
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), str(error), str(path)) from None


def weight_files(folder: Path) -> set[str]:
    """The weight files now in `folder`, by any of the names that `stage_shards` gives."""
    return {
        path.name
        for path in (folder / SINGLE, folder / INDEX, *folder.glob("model-*-of-*.safetensors"))
        if path.exists()
    }


def _files(folder: Path) -> list[str]:
    if (folder / SINGLE).exists():
        return [SINGLE]
    if not (folder / INDEX).exists():
        raise CheckpointError(f"{folder} holds neither {SINGLE} nor {INDEX}; other weight formats are not read")
    try:
        files = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / INDEX} is not a weight index ({error}); copy it again") from None
    for file in files:
        if not (folder / file).exists():
            raise CheckpointError(f"{folder / file} is missing, though {INDEX} lists it; copy it again")
    return files
