"""Published shapes by name, and a ladder of small ones that one dial, `depth`, derives."""

from __future__ import annotations

from ziphius.model.config import ModelConfig
from ziphius.model.deepseek.config import DeepSeekConfig
from ziphius.model.deepseek.presets import PRESETS as DEEPSEEK
from ziphius.model.llama.presets import PRESETS as LLAMA
from ziphius.model.qwen.presets import PRESETS as QWEN

_PRESETS = DEEPSEEK | LLAMA | QWEN


def preset_names() -> list[str]:
    return sorted(_PRESETS)


def preset(name: str) -> ModelConfig:
    """The published shape called `name`. Raises ValueError listing the names when there is none."""
    if name not in _PRESETS:
        raise ValueError(f"no preset called {name!r}; there are {', '.join(preset_names())}")
    return _PRESETS[name]()


def ladder(depth: int, vocab_size: int = 1024, **overrides: object) -> DeepSeekConfig:
    """A small DeepSeek-V3 network from one dial: `depth` layers of width 32·depth.

    depth 4 has 1.3M parameters, 8 has 8.7M, 12 has 48M, 18 has 164M (embedding and head of 1,024 tokens included,
    the prediction module not).
    Every part of V3 is there: latent attention, a dense first layer, shared and routed experts with a selection
    bias, one multi-token-prediction module. Queries are compressed from depth 12 on, as V2-Lite leaves them out.
    """
    if depth < 2:
        raise ValueError(f"depth is {depth}; a dense first layer and one of experts need at least 2")
    width = 32 * depth
    shape: dict[str, object] = {
        "vocab_size": vocab_size,
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "moe_intermediate_size": width // 2,
        "num_hidden_layers": depth,
        "num_nextn_predict_layers": 1,
        "num_attention_heads": depth,
        "q_lora_rank": width // 2 if depth >= 12 else None,
        "kv_lora_rank": max(32, width // 4),
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 16,
        "v_head_dim": 32,
        "n_routed_experts": 8 if depth < 12 else 16,
        "num_experts_per_tok": 2 if depth < 12 else 4,
        "first_k_dense_replace": 1,
        "max_position_embeddings": 1024,
    }
    return DeepSeekConfig(**(shape | overrides))
