"""A network in the words of llama.cpp's `deepseek2`: the keys of a GGUF file, and what that program cannot compute.

Source: the GGUF specification, and llama.cpp as llama-cpp-python 0.3.36 brings it (`src/models/deepseek2.cpp`,
`build_moe_ffn` and the YaRN settings of `llama-context.cpp`).
"""

from __future__ import annotations

from ziphius.checkpoint.errors import CheckpointError
from ziphius.model.deepseek.attention import LATENT_EPS
from ziphius.model.deepseek.config import DeepSeekConfig
from ziphius.model.scaling import YarnScaling

ARCHITECTURE = "deepseek2"
Value = str | bool | int | float | list[str] | list[int]

_GATES = {"softmax": 1, "sigmoid": 2}
_WITHOUT_QUERY_RANK = (26, 27)  # so many layers are taken for V2-Lite, whose queries are not compressed


def network_keys(config: DeepSeekConfig) -> dict[str, Value]:
    """GGUF key -> value for the network `config`. Raises CheckpointError where llama.cpp would compute another one.

    Attention is described in its absorbed form: one shared key of `kv_lora_rank + qk_rope_head_dim`.
    """
    refuse_what_differs(config)
    dense = config.num_hidden_layers if config.n_routed_experts is None else config.first_k_dense_replace
    keys: dict[str, Value] = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "leading_dense_block_count": min(dense, config.num_hidden_layers),
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": 1,
        "attention.q_lora_rank": config.q_lora_rank or 0,  # the key is asked for; 0 stands for full queries
        "attention.kv_lora_rank": config.kv_lora_rank,
        "attention.key_length": config.kv_lora_rank + config.qk_rope_head_dim,
        "attention.value_length": config.kv_lora_rank,
        "attention.key_length_mla": config.qk_head_dim,
        "attention.value_length_mla": config.v_head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.dimension_count": config.qk_rope_head_dim,
        "rope.freq_base": config.rope_theta,
        "expert_feed_forward_length": config.moe_intermediate_size,
        "expert_shared_count": config.n_shared_experts,
    }
    keys |= _expert_keys(config) | _rope_keys(config.rope_scaling)
    return {f"{ARCHITECTURE}.{key}": value for key, value in keys.items()}


def refuse_what_differs(config: DeepSeekConfig) -> None:
    """Raises CheckpointError naming the key of config.json that llama.cpp would read otherwise than this network."""
    layers, scaling = config.num_hidden_layers, config.rope_scaling
    reasons = {
        f"moe_layer_freq is {config.moe_layer_freq}, and every layer after the dense ones holds experts there": (
            config.moe_layer_freq != 1 and config.n_routed_experts is not None
        ),
        "topk_method is 'group_limited_greedy', which ranks a group by its best expert, and there by its two best": (
            config.topk_method == "group_limited_greedy" and _drops_groups(config)
        ),
        f"num_hidden_layers is {layers}, and queries of so many layers are taken as not compressed there "
        "(q_lora_rank null); one layer more or less is read right": (
            config.q_lora_rank is not None
            and (layers in _WITHOUT_QUERY_RANK or (layers == 48 and config.vocab_size == 128256))
        ),
        "rope_scaling's mscale and mscale_all_dim differ (or are 0), and there they are one number": (
            scaling is not None and (scaling.mscale != scaling.mscale_all_dim or not scaling.mscale)
        ),
        "rope_scaling's beta_fast and beta_slow are not 32 and 1, which is what is taken there": (
            scaling is not None and (scaling.beta_fast, scaling.beta_slow) != (32, 1)
        ),
    }
    for reason, holds in reasons.items():
        if holds:
            raise CheckpointError(
                f"llama.cpp would compute another network: {reason}; serve it with `ziphius serve` or vLLM"
            )


def small_differences(config: DeepSeekConfig) -> list[str]:
    """What llama.cpp computes a little differently, a sentence each."""
    if config.rms_norm_eps == LATENT_EPS:
        return []
    return [
        f"llama.cpp norms the latents with rms_norm_eps {config.rms_norm_eps:g} too, the network with {LATENT_EPS:g}: "
        "logits differ slightly"
    ]


def _drops_groups(config: DeepSeekConfig) -> bool:
    return config.n_routed_experts is not None and config.topk_method != "greedy" and config.topk_group < config.n_group


def _expert_keys(config: DeepSeekConfig) -> dict[str, Value]:
    if config.n_routed_experts is None:
        return {}
    normalise = config.norm_topk_prob and config.num_experts_per_tok > 1
    scaled = not (normalise and config.model_type == "deepseek_v2")  # V2's code does one or the other
    keys: dict[str, Value] = {
        "expert_count": config.n_routed_experts,
        "expert_used_count": config.num_experts_per_tok,
        "expert_gating_func": _GATES[config.scoring_func],
        "expert_weights_norm": normalise,
        "expert_weights_scale": config.routed_scaling_factor if scaled else 1.0,
    }
    if _drops_groups(config):
        keys |= {"expert_group_count": config.n_group, "expert_group_used_count": config.topk_group}
    return keys


def _rope_keys(scaling: YarnScaling | None) -> dict[str, Value]:
    if scaling is None:
        return {"rope.scaling.type": "none"}
    return {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": scaling.factor,
        "rope.scaling.original_context_length": scaling.original_max_position_embeddings,
        "rope.scaling.yarn_log_multiplier": 0.1 * scaling.mscale_all_dim,
    }
