"""The families of networks, by the `model_type` of their config.json. Imports no torch."""

from __future__ import annotations

from typing import Any

from ziphius.model.config import ModelConfig
from ziphius.model.deepseek.config import DeepSeekConfig
from ziphius.model.llama.config import LlamaConfig
from ziphius.model.qwen.config import Qwen2Config, Qwen3Config, Qwen3MoeConfig

FAMILIES: dict[str, type[ModelConfig]] = {
    "deepseek_v2": DeepSeekConfig,
    "deepseek_v3": DeepSeekConfig,
    "kimi_k2": DeepSeekConfig,
    "llama": LlamaConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "qwen3_moe": Qwen3MoeConfig,
}


def config_from_hf(raw: dict[str, Any]) -> ModelConfig:
    """Read a `config.json` dictionary, in the published form or as transformers 5 rewrites it.

    Raises ValueError naming the key when the file describes a network that is of none of these families.
    """
    kind = raw.get("model_type")
    if kind not in FAMILIES:
        raise ValueError(f"model_type is {kind!r}; this package reads {', '.join(map(repr, FAMILIES))}")
    return FAMILIES[kind].from_published(raw)
