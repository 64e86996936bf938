"""Which implementation the operations use: `fast` (the default) or `reference`; and the dtype they compute in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

_backend: ContextVar[str] = ContextVar("ziphius_ops_backend", default="fast")


def current_backend() -> str:
    return _backend.get()


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Use `name` ('fast' or 'reference') for every operation inside the block."""
    if name not in ("fast", "reference"):
        raise ValueError(f"no ops backend called {name!r}; there are 'fast' and 'reference'")
    token = _backend.set(name)
    try:
        yield
    finally:
        _backend.reset(token)


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype of matrix products on `x`: autocast's where it is on, else x's own."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
