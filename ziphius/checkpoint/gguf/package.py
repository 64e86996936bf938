"""The package `gguf`, an optional part: number formats and the writer of files."""

from __future__ import annotations

from types import ModuleType

from ziphius.checkpoint.errors import CheckpointError


def gguf_package() -> ModuleType:
    """The module `gguf`. Raises CheckpointError with the command that installs it."""
    try:
        import gguf
    except ImportError:
        raise CheckpointError("reading or writing GGUF needs the package gguf: pip install 'ziphius[gguf]'") from None
    return gguf
