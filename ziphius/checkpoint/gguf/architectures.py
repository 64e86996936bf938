"""llama.cpp's architectures that are read and written here: a row each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, cast

import numpy as np

from ziphius.checkpoint.gguf import deepseek2
from ziphius.checkpoint.gguf.file import GGUFFile
from ziphius.checkpoint.gguf.grouped import Grouped
from ziphius.checkpoint.gguf.keys import Keys, Value
from ziphius.checkpoint.gguf.links import Link


class Architecture(Protocol):
    """What an architecture answers; `config` is of the family that `MODEL_TYPES` gives it."""

    def read_config(self, keys: Keys, file: GGUFFile) -> dict[str, Any]: ...

    def network_keys(self, config: Any) -> dict[str, Value]: ...

    def links(self, config: Any) -> Iterator[Link]: ...

    def constants(self, config: Any) -> dict[str, np.ndarray]: ...

    def small_differences(self, config: Any) -> list[str]: ...


ARCHITECTURES: dict[str, Architecture] = {
    "deepseek2": cast(Architecture, deepseek2),
    "llama": Grouped("llama", "llama", in_pairs=True),
    "qwen2": Grouped("qwen2", "qwen2"),
    "qwen3": Grouped("qwen3", "qwen3"),
    "qwen3moe": Grouped("qwen3moe", "qwen3_moe"),
}
MODEL_TYPES = {
    "deepseek_v2": "deepseek2",
    "deepseek_v3": "deepseek2",
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3moe",
}
