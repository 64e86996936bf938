"""Samples on the disk: tokenised once, mapped into memory, so that their number is bounded by the disk alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import IO, overload

import numpy as np

from ziphius.disk.write import replacing, write_atomically
from ziphius.text.packing import Sample

_TOKENS, _TRAINED, _ENDS = "tokens.bin", "trained.bin", "ends.npy"


class SampleStore(Sequence[Sample]):
    """The samples in a folder that `writing` filled: uint32 ids, a byte a token for whether it is trained on."""

    def __init__(self, folder: Path) -> None:
        """FileNotFoundError: a folder that was not filled to the end."""
        self._ends = np.load(folder / _ENDS, mmap_mode="r")
        self._tokens, self._trained = (
            np.memmap(folder / name, dtype, "r") if len(self._ends) else np.empty(0, dtype)
            for name, dtype in ((_TOKENS, np.uint32), (_TRAINED, np.uint8))
        )

    @cached_property
    def lengths(self) -> np.ndarray:
        """The tokens of each sample, int64."""
        return np.diff(self._ends, prepend=0)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        end = int(self._ends[index])
        begin = end - int(self.lengths[index])
        return self._tokens[begin:end].tolist(), self._trained[begin:end].astype(np.float32).tolist()


class StoreWriter:
    """Takes samples one by one."""

    def __init__(self, tokens: IO[bytes], trained: IO[bytes]) -> None:
        self._tokens, self._trained = tokens, trained
        self.ends: list[int] = []

    def add(self, sample: Sample) -> None:
        tokens, weights = sample
        self._tokens.write(np.asarray(tokens, np.uint32).tobytes())
        self._trained.write(np.asarray(weights, bool).tobytes())
        self.ends.append((self.ends[-1] if self.ends else 0) + len(tokens))


@contextmanager
def writing(folder: Path) -> Iterator[StoreWriter]:
    """Fills `folder` with the samples that the block adds; what a kill leaves is not taken for a whole one.

    Raises DiskError where the disk refuses.
    """
    with (
        replacing(folder / _TOKENS) as tokens,
        replacing(folder / _TRAINED) as trained,
        tokens.open("wb") as first,
        trained.open("wb") as second,
    ):
        writer = StoreWriter(first, second)
        yield writer
    write_atomically(folder / _ENDS, lambda file: np.save(file, np.asarray(writer.ends, np.int64)))


def lengths_of(samples: Sequence[Sample]) -> list[int]:
    """The tokens of each sample."""
    if isinstance(samples, SampleStore):
        return samples.lengths.tolist()
    return [len(tokens) for tokens, _ in samples]
