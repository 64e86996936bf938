"""A GGUF file, read with nothing in it taken on trust: its keys and its table of tensors, and values when asked for.

Source: the GGUF specification (ggml's docs/gguf.md), versions 2 and 3. Of the package `gguf` only the number formats
are used: its reader believes the counts that a file states.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from ziphius.checkpoint.errors import CheckpointError
from ziphius.checkpoint.gguf.package import gguf_package

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

# A value's kind in the file -> how struct writes it.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_VERSIONS = (2, 3)
_MAX_DIMS = 4
_LONGEST_NAME = 65_535  # bytes of a key, by the specification
_ALIGNMENT = 32


@dataclass(frozen=True)
class FileTensor:
    """A tensor of the file: `shape` as torch has it (rows before columns), `kind` its number format."""

    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    start: int
    size: int


class GGUFFile:
    """`keys` and `tensors` of a GGUF file of `size` bytes; `values` reads one tensor, or a slice of it, as fp32.

    Raises CheckpointError naming the file and its mend where it is cut short, not GGUF, or contradicts itself. What is
    allocated is bounded by the size of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._gguf = gguf_package()

    def __enter__(self) -> GGUFFile:
        if not self.path.is_file():
            raise CheckpointError(f"{self.path} is not a file; give the GGUF file to read")
        self._handle = self.path.open("rb")
        self.size = self.path.stat().st_size
        try:
            self._map = mmap.mmap(self._handle.fileno(), 0, access=mmap.ACCESS_READ) if self.size else b""
            self._place = 0
            self._read_header()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._handle.close()  # the map goes with the last array that looks into it

    def values(self, name: str, part: int | None = None) -> np.ndarray:
        """The tensor `name`, or its slice `part` along the first axis, as fp32."""
        tensor = self.tensors[name]
        start, size, shape = tensor.start, tensor.size, tensor.shape
        if part is not None:
            size //= shape[0]
            start += part * size
            shape = shape[1:]
        raw = np.frombuffer(self._map, np.uint8, size, start).reshape(*shape[:-1], -1)
        try:
            return self._gguf.dequantize(raw, tensor.kind).reshape(shape)
        except NotImplementedError:
            raise CheckpointError(
                f"{self.path}: {name} is of the number format {tensor.kind.name}, which cannot be read; "
                "quantise the model to another format"
            ) from None

    # --- the header --------------------------------------------------------------------------------------------------

    def _read_header(self) -> None:
        if self._bytes(4) != b"GGUF":
            raise CheckpointError(f"{self.path} is not a GGUF file; export or download one")
        version = self._number("I")
        if version not in _VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            what = "is big-endian" if swapped in _VERSIONS else f"is of GGUF version {version}"
            raise CheckpointError(f"{self.path} {what}; convert it to version 3, little-endian, with llama.cpp")
        tensors, keys = self._count(24), self._count(12)  # bytes that the smallest of them takes
        self.keys: dict[str, Any] = {}
        for _ in range(keys):
            name = self._text(_LONGEST_NAME)
            if name in self.keys:
                raise self._corrupt(f"states {name} twice")
            self.keys[name] = self._value(self._number("I"))
        self.tensors: dict[str, FileTensor] = {}
        for name, shape, kind, offset in [self._tensor() for _ in range(tensors)]:
            if name in self.tensors:
                raise self._corrupt(f"has two tensors {name}")
            self.tensors[name] = self._placed(name, shape, kind, offset)

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._text(_LONGEST_NAME)
        dims = self._number("I")
        if not 0 < dims <= _MAX_DIMS:
            raise self._corrupt(f"gives {name} {dims} dimensions")
        shape = tuple(self._number("Q") for _ in range(dims))[::-1]
        return name, shape, self._number("I"), self._number("Q")

    def _placed(self, name: str, shape: tuple[int, ...], kind: int, offset: int) -> FileTensor:
        try:
            found = self._gguf.GGMLQuantizationType(kind)
            block, block_bytes = self._gguf.GGML_QUANT_SIZES[found]
        except (ValueError, KeyError):
            raise CheckpointError(
                f"{self.path}: {name} is of the number format {kind}, which the installed package gguf does not know; "
                "pip install -U gguf, or quantise the model to another format"
            ) from None
        if min(shape) < 1 or shape[-1] % block:
            raise self._corrupt(f"gives {name} the shape {list(shape)} in blocks of {block}")
        alignment = self.keys.get("general.alignment", _ALIGNMENT)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise self._corrupt(f"has general.alignment {alignment!r}")
        start = -(-self._place // alignment) * alignment + offset
        size = math.prod(shape) // block * block_bytes
        if start + size > self.size:
            raise self._short(f"{name} ends at byte {start + size:,}")
        return FileTensor(shape, found, start, size)

    def _value(self, kind: int, nested: bool = False) -> Any:
        if kind == _STRING:
            return self._text()
        if kind == _ARRAY and not nested:
            element = self._number("I")
            if element in _SCALARS:
                count = self._count(struct.calcsize(_SCALARS[element]))
                return list(self._unpack(f"<{count}{_SCALARS[element]}"))
            return [self._value(element, nested=True) for _ in range(self._count(8))]
        if kind not in _SCALARS:
            raise self._corrupt(f"has a value of the kind {kind}")
        return self._number(_SCALARS[kind])

    def _text(self, longest: int | None = None) -> str:
        length = self._count(1)
        if longest is not None and length > longest:
            raise self._corrupt(f"has a name of {length:,} bytes")
        try:
            return self._bytes(length).decode()
        except UnicodeDecodeError:
            raise self._corrupt("has a text that is not UTF-8") from None

    def _count(self, each: int) -> int:
        """A number of things of at least `each` bytes, which must fit into the rest of the file."""
        count = self._number("Q")
        if count * each > self.size - self._place:
            raise self._short(f"{count:,} entries are announced at byte {self._place:,}")
        return count

    def _number(self, form: str) -> Any:
        return self._unpack("<" + form)[0]

    def _unpack(self, form: str) -> tuple[Any, ...]:
        return struct.unpack(form, self._bytes(struct.calcsize(form)))

    def _bytes(self, size: int) -> bytes:
        if self._place + size > self.size:
            raise self._short(f"byte {self._place + size:,} is wanted")
        self._place += size
        return self._map[self._place - size : self._place]

    def _short(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path} is cut short: {what}, and it has {self.size:,}; copy it again")

    def _corrupt(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path} {what}: it is damaged; copy it again")
