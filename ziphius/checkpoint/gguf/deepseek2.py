"""DeepSeek's networks in the words of llama.cpp's `deepseek2`, and what that program cannot compute.

Source: the GGUF specification, and llama.cpp as llama-cpp-python 0.3.36 brings it (`src/models/deepseek2.cpp`,
`build_moe_ffn` and the YaRN settings of `llama-context.cpp`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ziphius.checkpoint.errors import CheckpointError
from ziphius.checkpoint.gguf.file import GGUFFile
from ziphius.checkpoint.gguf.keys import Keys, Value, decoder_keys
from ziphius.checkpoint.gguf.links import LatentHalves, Link, expert_links, mlp_links, outer_links, plain
from ziphius.checkpoint.gguf.rope import yarn_betas
from ziphius.model.deepseek.attention import LATENT_EPS
from ziphius.model.deepseek.config import DeepSeekConfig
from ziphius.model.scaling import YarnScaling

ARCHITECTURE = "deepseek2"

_GATES = {"softmax": 1, "sigmoid": 2}
_YARN_LOG = 0.1  # yarn_log_multiplier is mscale_all_dim times this
_WITHOUT_QUERY_RANK = (26, 27)  # so many layers are taken for V2-Lite, whose queries are not compressed


def network_keys(config: DeepSeekConfig) -> dict[str, Value]:
    """GGUF key -> value for the network `config`. Raises CheckpointError where llama.cpp would compute another one.

    Attention is described in its absorbed form: one shared key of `kv_lora_rank + qk_rope_head_dim`.
    """
    refuse_what_differs(config)
    dense = config.num_hidden_layers if config.n_routed_experts is None else config.first_k_dense_replace
    keys = decoder_keys(config) | {
        "leading_dense_block_count": min(dense, config.num_hidden_layers),
        "attention.head_count_kv": 1,
        "attention.q_lora_rank": config.q_lora_rank or 0,  # the key is asked for; 0 stands for full queries
        "attention.kv_lora_rank": config.kv_lora_rank,
        "attention.key_length": config.kv_lora_rank + config.qk_rope_head_dim,
        "attention.value_length": config.kv_lora_rank,
        "attention.key_length_mla": config.qk_head_dim,
        "attention.value_length_mla": config.v_head_dim,
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
    routing = config.routing
    if routing is None:
        return {}
    keys: dict[str, Value] = {
        "expert_count": routing.experts,
        "expert_used_count": routing.top_k,
        "expert_gating_func": _GATES[routing.scoring],
        "expert_weights_norm": routing.normalise,
        "expert_weights_scale": routing.factor,
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
        "rope.scaling.yarn_log_multiplier": _YARN_LOG * scaling.mscale_all_dim,
    }


# --- from a file -----------------------------------------------------------------------------------------------------


def read_config(keys: Keys, file: GGUFFile) -> dict[str, Any]:
    """config.json of the network that `keys` describe, but for its vocabulary and token ids.

    Raises CheckpointError for a file from before attention was described in its absorbed form.
    """
    if "attention.key_length_mla" not in keys:
        raise CheckpointError(f"{file.path} is from before April 2025, when deepseek2 changed; convert it again")
    experts, rope_dim = keys.count("expert_count", 0) or None, keys.count("rope.dimension_count")
    v3 = experts is None or keys.count("expert_gating_func", _GATES["softmax"]) == _GATES["sigmoid"]
    groups = keys.count("expert_group_count", 1)
    return {
        "model_type": "deepseek_v3" if v3 else "deepseek_v2",
        "hidden_size": keys.count("embedding_length"),
        "intermediate_size": keys.count("feed_forward_length"),
        "moe_intermediate_size": keys.count("expert_feed_forward_length"),
        "num_hidden_layers": keys.count("block_count"),
        "num_attention_heads": keys.count("attention.head_count"),
        "n_routed_experts": experts,
        "n_shared_experts": keys.count("expert_shared_count"),
        "num_experts_per_tok": keys.count("expert_used_count", 1),
        "n_group": groups,
        "topk_group": keys.count("expert_group_used_count", 1),
        "topk_method": "noaux_tc" if v3 else "group_limited_greedy" if groups > 1 else "greedy",
        "scoring_func": "sigmoid" if v3 else "softmax",
        "norm_topk_prob": keys.flag("expert_weights_norm", False),
        "routed_scaling_factor": keys.number("expert_weights_scale", 1.0),
        "first_k_dense_replace": keys.count("leading_dense_block_count", 0),
        "q_lora_rank": keys.count("attention.q_lora_rank", 0) or None,
        "kv_lora_rank": keys.count("attention.kv_lora_rank"),
        "qk_nope_head_dim": keys.count("attention.key_length_mla") - rope_dim,
        "qk_rope_head_dim": rope_dim,
        "v_head_dim": keys.count("attention.value_length_mla"),
        "max_position_embeddings": keys.count("context_length"),
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": keys.number("rope.freq_base", 10000.0),
        "rope_scaling": _read_scaling(keys, file),
    }


def _read_scaling(keys: Keys, file: GGUFFile) -> dict[str, Any] | None:
    kind = keys.text("rope.scaling.type", "none")
    if kind == "none":
        return None
    if kind != "yarn":
        raise CheckpointError(f"{file.path}: rope.scaling.type is {kind!r}; DeepSeek's networks use 'yarn'")
    mscale = round(keys.number("rope.scaling.yarn_log_multiplier") / _YARN_LOG, 6)
    return {
        "type": "yarn",
        "factor": keys.number("rope.scaling.factor"),
        "original_max_position_embeddings": keys.count("rope.scaling.original_context_length"),
        "mscale": mscale,
        "mscale_all_dim": mscale,
        **yarn_betas(keys),
    }


# --- tensors ---------------------------------------------------------------------------------------------------------


def links(config: DeepSeekConfig) -> Iterator[Link]:
    """Every tensor of the network but those of its prediction modules."""
    hidden = config.hidden_size
    yield from outer_links(config.vocab_size, hidden, config.tie_word_embeddings)
    for layer in range(config.num_hidden_layers):
        yield plain(f"model.layers.{layer}.input_layernorm", (hidden,), f"blk.{layer}.attn_norm")
        yield from _attention_links(config, f"model.layers.{layer}.self_attn", f"blk.{layer}.attn")
        yield plain(f"model.layers.{layer}.post_attention_layernorm", (hidden,), f"blk.{layer}.ffn_norm")
        routing = config.routing
        if routing is None or not config.is_moe_layer(layer):
            yield from mlp_links(layer, hidden, config.intermediate_size)
            continue
        yield from expert_links(layer, hidden, routing.hidden, routing.experts)
        yield from mlp_links(layer, hidden, routing.shared_hidden, "mlp.shared_experts", "_shexp")
        if routing.selection_bias:
            bias = f"model.layers.{layer}.mlp.gate.e_score_correction_bias"
            yield Link(bias, (routing.experts,), (f"blk.{layer}.exp_probs_b.bias",))


def constants(config: DeepSeekConfig) -> dict[str, np.ndarray]:
    """What a file holds beside the network's weights: nothing."""
    return {}


def _attention_links(config: DeepSeekConfig, ours: str, theirs: str) -> Iterator[Link]:
    hidden, heads, latent, rank = (
        config.hidden_size, config.num_attention_heads, config.kv_lora_rank, config.q_lora_rank
    )  # fmt: skip
    queries, up = heads * config.qk_head_dim, heads * (config.qk_nope_head_dim + config.v_head_dim)
    if rank is None:
        yield plain(f"{ours}.q_proj", (queries, hidden), f"{theirs}_q")
    else:
        yield plain(f"{ours}.q_a_proj", (rank, hidden), f"{theirs}_q_a")
        yield plain(f"{ours}.q_a_layernorm", (rank,), f"{theirs}_q_a_norm")
        yield plain(f"{ours}.q_b_proj", (queries, rank), f"{theirs}_q_b")
    yield plain(f"{ours}.kv_a_proj_with_mqa", (latent + config.qk_rope_head_dim, hidden), f"{theirs}_kv_a_mqa")
    yield plain(f"{ours}.kv_a_layernorm", (latent,), f"{theirs}_kv_a_norm")
    halves = LatentHalves(heads, config.qk_nope_head_dim)
    yield Link(f"{ours}.kv_b_proj.weight", (up, latent), (f"{theirs}_k_b.weight", f"{theirs}_v_b.weight"), halves)
    yield plain(f"{ours}.o_proj", (hidden, heads * config.v_head_dim), f"{theirs}_output")
