"""Which implementation the operations use, and the dtype they compute in.

- `reference`: the plain formula, on any device.
- `torch`: fewer passes over the data, still made of torch operations, on any device.
- `native`: C kernels (`ops.native`) for fp32 and bf16 tensors on a CPU. What has no kernel runs as `torch`.
- `triton`: GPU kernels (`ops.triton`) for fp32 and bf16 tensors on a CUDA device. What has no kernel runs as `torch`.
- `auto` (the default): `native` or `triton` where the tensors allow it and the kernels can be had, else `torch`.

What `torch.compile` traces takes `triton` or `torch` by its tensors alone, whatever was asked for; operations on single
elements leave their formula to the compiler, which fuses it with what stands around it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from ziphius.ops import triton
from ziphius.ops.native import build

BACKENDS = ("auto", "reference", "torch", "native", "triton")

_backend: ContextVar[str] = ContextVar("ziphius_ops_backend", default="auto")


def current_backend() -> str:
    """The name asked for, 'auto' unless `backend` says otherwise."""
    return _backend.get()


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Use `name` for every operation inside the block. Raises RuntimeError when its kernels cannot be had."""
    if name not in BACKENDS:
        raise ValueError(f"no ops backend called {name!r}; there are {', '.join(map(repr, BACKENDS))}")
    if name == "native":
        try:
            build.require()
        except build.BuildError as error:
            raise RuntimeError(f"the native ops backend cannot be had: {error}") from error
    if name == "triton" and (reason := triton.why_not()) is not None:
        raise RuntimeError(f"the triton ops backend cannot be had: {reason}")
    token = _backend.set(name)
    try:
        yield
    finally:
        _backend.reset(token)


def backend_for(*tensors: Tensor) -> str:
    """'reference', 'torch', 'native' or 'triton' for an operation on `tensors`.

    Raises RuntimeError where kernels were asked for by name and a tensor is no plain fp32 or bf16 one on their device.
    """
    if torch.compiler.is_compiling():
        return "triton" if all(_fits(x, "cuda") for x in tensors) and has_triton() else "torch"
    name = _backend.get()
    if name in ("reference", "torch"):
        return name
    if name != "triton" and all(map(_fits, tensors)):
        if build.library() is not None:
            return "native"
    elif name != "native" and all(_fits(x, "cuda") for x in tensors):
        if triton.why_not() is None:
            return "triton"
    elif name == "triton" and triton.interpreted() and all(map(_fits, tensors)):
        return "triton"
    elif name != "auto":
        device = "CPU" if name == "native" else "CUDA"
        wrong = next(x for x in tensors if not _fits(x, device.lower()))
        raise RuntimeError(
            f"the {name} ops backend takes fp32 and bf16 {device} tensors, not {type(wrong).__name__} "
            f"{wrong.dtype} on {wrong.device}; use 'auto'"
        )
    return "torch"


def leaves_formula() -> bool:
    """Whether an operation on single elements is best left as its formula: where the reference is asked for, and where
    a compiler is at work."""
    return torch.compiler.is_compiling() or _backend.get() == "reference"


def has_triton() -> bool:
    """Whether the `triton` backend can be had here; a constant to `torch.compile`."""
    return triton.why_not() is None


def kernels_of_cpu() -> str:
    """'native' where the C kernels can be had on this machine, else 'torch': results of the two differ by rounding."""
    return "native" if build.library() is not None else "torch"


def _fits(x: Tensor, device: str = "cpu") -> bool:
    plain = type(x) is Tensor or type(x) is torch.nn.Parameter  # a DTensor, say, has no memory of its own to point at
    return plain and x.device.type == device and (x.dtype == torch.float32 or x.dtype == torch.bfloat16)


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype of matrix products on `x`: autocast's where it is on, else x's own."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
