"""Published shapes of Llama's family: the two of R1's distilled students, and the small one that learns on a CPU."""

from __future__ import annotations

from collections.abc import Callable

from ziphius.model.llama.config import LlamaConfig
from ziphius.model.scaling import Llama3Scaling


def _llama3(hidden: int, intermediate: int, layers: int, heads: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=128256, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=8, head_dim=128, max_position_embeddings=131072,
        rope_theta=500000.0, rms_norm_eps=1e-5, bos_token_id=128000, eos_token_id=128001,
        rope_scaling=Llama3Scaling(
            factor=8, low_freq_factor=1, high_freq_factor=4, original_max_position_embeddings=8192
        ),
    )  # fmt: skip


def _smollm2_135m() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, head_dim=64, max_position_embeddings=8192, rope_theta=100000.0, rms_norm_eps=1e-5,
        tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip


PRESETS: dict[str, Callable[[], LlamaConfig]] = {
    "r1-distill-llama-8b": lambda: _llama3(4096, 14336, 32, 32),
    "r1-distill-llama-70b": lambda: _llama3(8192, 28672, 80, 64),
    "smollm2-135m": _smollm2_135m,
}
