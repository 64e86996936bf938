"""Which implementation the operations use, and the dtype they compute in.

- `reference`: the plain formula, on any device.
- `torch`: fewer passes over the data, still made of torch operations, on any device.
- `native`: C kernels (`ops.native`) for fp32 and bf16 tensors on a CPU. What has no kernel runs as `torch`.
- `auto` (the default): `native` where the tensors allow it and the kernels can be built, else `torch`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from ziphius.ops.native import build

BACKENDS = ("auto", "reference", "torch", "native")

_backend: ContextVar[str] = ContextVar("ziphius_ops_backend", default="auto")


def current_backend() -> str:
    """The name asked for, 'auto' unless `backend` says otherwise."""
    return _backend.get()


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Use `name` for every operation inside the block. Raises RuntimeError when 'native' cannot be built."""
    if name not in BACKENDS:
        raise ValueError(f"no ops backend called {name!r}; there are {', '.join(map(repr, BACKENDS))}")
    if name == "native":
        try:
            build.require()
        except build.BuildError as error:
            raise RuntimeError(f"the native ops backend cannot be had: {error}") from error
    token = _backend.set(name)
    try:
        yield
    finally:
        _backend.reset(token)


def backend_for(*tensors: Tensor) -> str:
    """'reference', 'torch' or 'native' for an operation on `tensors`.

    Raises RuntimeError when 'native' was asked for and a tensor is not a plain fp32 or bf16 one on a CPU.
    """
    name = _backend.get()
    if name in ("reference", "torch"):
        return name
    if all(map(_fits, tensors)):
        if build.library() is not None:
            return "native"
    elif name == "native":
        wrong = next(x for x in tensors if not _fits(x))
        raise RuntimeError(
            f"the native ops backend takes fp32 and bf16 CPU tensors, not {type(wrong).__name__} "
            f"{wrong.dtype} on {wrong.device}; use 'auto'"
        )
    return "torch"


def _fits(x: Tensor) -> bool:
    plain = type(x) is Tensor or type(x) is torch.nn.Parameter  # a DTensor, say, has no memory of its own to point at
    return plain and x.device.type == "cpu" and (x.dtype == torch.float32 or x.dtype == torch.bfloat16)


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype of matrix products on `x`: autocast's where it is on, else x's own."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
