"""Published shapes of DeepSeek's family (facts 1.1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ziphius.model.deepseek.config import DeepSeekConfig
from ziphius.model.scaling import YarnScaling

_HEADS: dict[str, Any] = {"qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "kv_lora_rank": 512}


def _yarn(factor: float, mscale: float) -> YarnScaling:
    return YarnScaling(factor=factor, original_max_position_embeddings=4096, mscale=mscale, mscale_all_dim=mscale)


def _deepseek_v3() -> DeepSeekConfig:
    return DeepSeekConfig(
        vocab_size=129280, hidden_size=7168, intermediate_size=18432, moe_intermediate_size=2048,
        num_hidden_layers=61, num_nextn_predict_layers=1, num_attention_heads=128, q_lora_rank=1536, **_HEADS,
        n_routed_experts=256, num_experts_per_tok=8, n_group=8, topk_group=4, routed_scaling_factor=2.5,
        first_k_dense_replace=3, max_position_embeddings=163840, rope_scaling=_yarn(40, 1.0),
    )  # fmt: skip


def _deepseek_v2() -> DeepSeekConfig:
    return DeepSeekConfig(
        model_type="deepseek_v2", vocab_size=102400, hidden_size=5120, intermediate_size=12288,
        moe_intermediate_size=1536, num_hidden_layers=60, num_attention_heads=128, q_lora_rank=1536, **_HEADS,
        n_routed_experts=160, n_shared_experts=2, num_experts_per_tok=6, n_group=8, topk_group=3,
        topk_method="group_limited_greedy", scoring_func="softmax", norm_topk_prob=False, routed_scaling_factor=16.0,
        first_k_dense_replace=1, max_position_embeddings=163840, rope_scaling=_yarn(40, 0.707),
    )  # fmt: skip


def _deepseek_v2_lite() -> DeepSeekConfig:
    return DeepSeekConfig(
        model_type="deepseek_v2", vocab_size=102400, hidden_size=2048, intermediate_size=10944,
        moe_intermediate_size=1408, num_hidden_layers=27, num_attention_heads=16, **_HEADS,
        n_routed_experts=64, n_shared_experts=2, num_experts_per_tok=6, topk_method="greedy",
        scoring_func="softmax", norm_topk_prob=False, first_k_dense_replace=1, max_position_embeddings=163840,
        rope_scaling=_yarn(40, 0.707),
    )  # fmt: skip


def _moonlight() -> DeepSeekConfig:
    return DeepSeekConfig(
        vocab_size=163840, hidden_size=2048, intermediate_size=11264, moe_intermediate_size=1408,
        num_hidden_layers=27, num_attention_heads=16, **_HEADS, n_routed_experts=64, n_shared_experts=2,
        num_experts_per_tok=6, routed_scaling_factor=2.446, first_k_dense_replace=1, max_position_embeddings=8192,
        rope_theta=50000.0, rms_norm_eps=1e-5,
    )  # fmt: skip


def _kimi_k2() -> DeepSeekConfig:
    return DeepSeekConfig(
        vocab_size=163840, hidden_size=7168, intermediate_size=18432, moe_intermediate_size=2048,
        num_hidden_layers=61, num_attention_heads=64, q_lora_rank=1536, **_HEADS, n_routed_experts=384,
        num_experts_per_tok=8, routed_scaling_factor=2.827, first_k_dense_replace=1, max_position_embeddings=131072,
        rope_theta=50000.0, rope_scaling=_yarn(32, 1.0),
    )  # fmt: skip


PRESETS: dict[str, Callable[[], DeepSeekConfig]] = {
    "deepseek-v3": _deepseek_v3,
    "deepseek-r1": _deepseek_v3,
    "deepseek-v2": _deepseek_v2,
    "deepseek-v2-lite": _deepseek_v2_lite,
    "moonlight-16b-a3b": _moonlight,
    "kimi-k2": _kimi_k2,
}
