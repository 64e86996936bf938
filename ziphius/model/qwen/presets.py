"""Published shapes of Qwen's family: those of R1's distilled students, and two of Qwen3."""

from __future__ import annotations

from collections.abc import Callable

from ziphius.model.qwen.config import Qwen2Config, Qwen3Config, Qwen3MoeConfig


def _distilled(
    hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, vocab: int, theta: float, eps: float
) -> Qwen2Config:
    return Qwen2Config(
        vocab_size=vocab, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=128, max_position_embeddings=131072,
        rope_theta=theta, rms_norm_eps=eps, bos_token_id=151646, eos_token_id=151643,
    )  # fmt: skip


def _qwen3_8b() -> Qwen3Config:
    return Qwen3Config(
        vocab_size=151936, hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128, max_position_embeddings=40960, rope_theta=1000000.0,
        bos_token_id=151643, eos_token_id=151645,
    )  # fmt: skip


def _qwen3_30b_a3b() -> Qwen3MoeConfig:
    return Qwen3MoeConfig(
        vocab_size=151936, hidden_size=2048, intermediate_size=6144, moe_intermediate_size=768, num_hidden_layers=48,
        num_attention_heads=32, num_key_value_heads=4, head_dim=128, num_experts=128, num_experts_per_tok=8,
        norm_topk_prob=True, max_position_embeddings=40960, rope_theta=1000000.0, bos_token_id=151643,
        eos_token_id=151645,
    )  # fmt: skip


PRESETS: dict[str, Callable[[], Qwen2Config | Qwen3Config | Qwen3MoeConfig]] = {
    "r1-distill-qwen-1.5b": lambda: _distilled(1536, 8960, 28, 12, 2, 151936, 1e4, 1e-6),
    "r1-distill-qwen-7b": lambda: _distilled(3584, 18944, 28, 28, 4, 152064, 1e4, 1e-6),
    "r1-distill-qwen-14b": lambda: _distilled(5120, 13824, 48, 40, 8, 152064, 1e6, 1e-5),
    "r1-distill-qwen-32b": lambda: _distilled(5120, 27648, 64, 40, 8, 152064, 1e6, 1e-5),
    "qwen3-8b": _qwen3_8b,
    "qwen3-30b-a3b": _qwen3_30b_a3b,
}
