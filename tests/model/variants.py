"""Small networks of every published variant, with random weights that keep the logits of order one."""

from __future__ import annotations

import torch

from ziphius.model.config import ModelConfig
from ziphius.model.deepseek.config import DeepSeekConfig
from ziphius.model.llama.config import LlamaConfig
from ziphius.model.qwen.config import Qwen2Config, Qwen3Config, Qwen3MoeConfig
from ziphius.model.scaling import LinearScaling, Llama3Scaling, YarnScaling
from ziphius.model.transformer import Transformer

_SIZES = {
    "vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "moe_intermediate_size": 24,
    "num_hidden_layers": 3, "num_attention_heads": 4, "q_lora_rank": 20, "kv_lora_rank": 16,
    "qk_nope_head_dim": 8, "qk_rope_head_dim": 12, "v_head_dim": 10,
    "n_routed_experts": 8, "num_experts_per_tok": 3, "first_k_dense_replace": 1, "max_position_embeddings": 256,
    "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip


def yarn(factor=8.0, **scales) -> YarnScaling:
    """YaRN from 32 positions; β of 4 and 1 put the ramp inside the few pairs of these small heads."""
    return YarnScaling(factor=factor, original_max_position_embeddings=32, beta_fast=4, beta_slow=1, **scales)


def v3(**overrides) -> ModelConfig:
    grouped = {"n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5}
    return DeepSeekConfig(**_SIZES | grouped | overrides)


def v2(**overrides) -> ModelConfig:
    softmax = {
        "model_type": "deepseek_v2", "topk_method": "greedy", "scoring_func": "softmax", "norm_topk_prob": False,
        "routed_scaling_factor": 4.0, "n_shared_experts": 2,
    }  # fmt: skip
    return DeepSeekConfig(**_SIZES | softmax | overrides)


VARIANTS = {
    "V3, grouped": v3(),
    "V3, YaRN as published": v3(rope_scaling=yarn(mscale=1.0, mscale_all_dim=1.0)),
    "V3, YaRN, one group left": v3(topk_group=2, rope_scaling=yarn(factor=40, mscale=0.707, mscale_all_dim=0.707)),
    "V3, mscale unlike mscale_all_dim": v3(rope_scaling=yarn(mscale=1.0, mscale_all_dim=0.5)),
    "V3, mscale_all_dim left out": v3(rope_scaling=yarn()),
    "V3, not normalised": v3(norm_topk_prob=False),
    "V3, tied": v3(tie_word_embeddings=True, n_shared_experts=2),
    "Moonlight": v3(
        n_group=1, topk_group=1, q_lora_rank=None, n_shared_experts=2, rope_theta=50000.0, rms_norm_eps=1e-5
    ),
    "Kimi-K2": v3(n_group=1, topk_group=1, rope_theta=50000.0, rope_scaling=yarn(32, mscale=1.0, mscale_all_dim=1.0)),
    "a large eps": v3(rms_norm_eps=0.3),
    "V2-Lite": v2(q_lora_rank=None, rope_scaling=yarn(mscale=0.707, mscale_all_dim=0.707)),
    "V2": v2(
        topk_method="group_limited_greedy",
        n_group=4,
        topk_group=2,
        rope_scaling=yarn(mscale=0.707, mscale_all_dim=0.707),
    ),
    "V2, no YaRN, tied": v2(tie_word_embeddings=True, first_k_dense_replace=0),
}  # fmt: skip

_GROUPED = {
    "vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256,
}  # fmt: skip
_LLAMA3 = Llama3Scaling(factor=8, low_freq_factor=1, high_freq_factor=4, original_max_position_embeddings=32)
_EXPERTS = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 24}

GROUPED = {
    "Llama 2": LlamaConfig(**_GROUPED | {"num_key_value_heads": 6}, rms_norm_eps=1e-5),
    "Llama 3.1": LlamaConfig(**_GROUPED, rope_theta=500000.0, rope_scaling=_LLAMA3),
    "SmolLM2, tied": LlamaConfig(**_GROUPED, tie_word_embeddings=True, rope_theta=100000.0),
    "Llama, linear": LlamaConfig(**_GROUPED, rope_scaling=LinearScaling(factor=4)),
    "Llama, one key": LlamaConfig(**_GROUPED | {"num_key_value_heads": 1, "head_dim": 12}),
    "Qwen2.5": Qwen2Config(**_GROUPED, rope_theta=1000000.0),
    "Qwen2.5, YaRN, tied": Qwen2Config(**_GROUPED, rope_scaling=yarn(4.0), tie_word_embeddings=True),
    "Qwen3": Qwen3Config(**_GROUPED | {"head_dim": 16}, rope_theta=1000000.0),
    "Qwen3, experts": Qwen3MoeConfig(**_GROUPED, **_EXPERTS, norm_topk_prob=True),
    "Qwen3, some dense": Qwen3MoeConfig(**_GROUPED, **_EXPERTS, mlp_only_layers=[1]),
}
FAMILIES = VARIANTS | GROUPED


@torch.no_grad()
def randomise(parameters: dict[str, torch.Tensor], seed: int) -> None:
    """Matrices with unit gain, norms around one, a selection bias that changes what is chosen. In place."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in parameters.items():
        if "e_score_correction_bias" in name or name.endswith(".bias"):
            tensor.normal_(0.0, 0.3, generator=generator)
        elif tensor.ndim == 1:
            tensor.normal_(1.0, 0.3, generator=generator)
        elif "embed_tokens" in name:
            tensor.normal_(0.0, 0.5, generator=generator)
        else:
            gain = 0.5 if "lm_head" in name else 1.0
            tensor.normal_(0.0, gain * tensor.shape[-1] ** -0.5, generator=generator)


def network(config: ModelConfig, seed: int = 0) -> Transformer:
    model = Transformer(config).eval()
    randomise(model.state_dict(), seed)
    return model


def tokens_of(config: ModelConfig, shape: tuple[int, int], seed: int = 0) -> torch.Tensor:
    return torch.randint(0, config.vocab_size, shape, generator=torch.Generator().manual_seed(seed))
