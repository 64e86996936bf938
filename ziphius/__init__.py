"""Ziphius: make, run and price DeepSeek-style reasoning models.

>>> import ziphius
>>> model = ziphius.load_model("runs/r1-cpu-seed0/stages/04-rl")
>>> tokenizer = ziphius.Tokenizer.load("runs/r1-cpu-seed0/stages/04-rl")
>>> ziphius.generate(model, ["How many legs do 3 cows and 1 ant have?"], tokenizer)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ziphius.checkpoint.folder import load_config, load_model, save_model
    from ziphius.engine.generate import generate
    from ziphius.text.tokenizer import Tokenizer

__all__ = ["Tokenizer", "generate", "load_config", "load_model", "save_model"]

_HOME = {
    "Tokenizer": "ziphius.text.tokenizer",
    "generate": "ziphius.engine.generate",
    "load_config": "ziphius.checkpoint.folder",
    "load_model": "ziphius.checkpoint.folder",
    "save_model": "ziphius.checkpoint.folder",
}


def __getattr__(name: str) -> Any:
    """Fetch a public name when it is first asked for, so that `import ziphius` stays light."""
    if name not in _HOME:
        raise AttributeError(f"module 'ziphius' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
