"""Networks with grouped-query attention in the words of llama.cpp: its `llama`, `qwen2`, `qwen3` and `qwen3moe`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ziphius.checkpoint.errors import CheckpointError
from ziphius.checkpoint.gguf.file import GGUFFile
from ziphius.checkpoint.gguf.keys import Keys, Value, decoder_keys
from ziphius.checkpoint.gguf.links import SAME, Form, Link, Pairs, expert_links, mlp_links, outer_links, plain
from ziphius.checkpoint.gguf.rope import read_scaling, scaling_constants, scaling_keys
from ziphius.model.grouped.config import GroupedConfig
from ziphius.model.qwen.config import Qwen3MoeConfig


@dataclass(frozen=True)
class Grouped:
    """The architecture `name` of llama.cpp, which is `model_type` in config.json.

    `in_pairs`: neighbouring rows of queries and keys are rotated there.
    """

    name: str
    model_type: str
    in_pairs: bool = False

    def read_config(self, keys: Keys, file: GGUFFile) -> dict[str, Any]:
        """config.json of the network that `keys` describe, but for its vocabulary and token ids."""
        heads, hidden = keys.count("attention.head_count"), keys.count("embedding_length")
        head_dim = keys.count("attention.key_length", hidden // max(heads, 1))
        if (rotated := keys.count("rope.dimension_count", head_dim)) != head_dim:
            raise CheckpointError(
                f"{file.path}: {rotated} of each head's {head_dim} values are rotated; only whole heads are read"
            )
        theta = keys.number("rope.freq_base", 10000.0)
        config = {
            "model_type": self.model_type,
            "hidden_size": hidden,
            "intermediate_size": keys.count("feed_forward_length", 0 if self._has_experts else None),
            "num_hidden_layers": keys.count("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": keys.count("attention.head_count_kv", heads),
            "head_dim": head_dim,
            "max_position_embeddings": keys.count("context_length"),
            "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
            "rope_theta": theta,
            "rope_scaling": read_scaling(keys, file, theta, head_dim),
        }
        if self._has_experts:
            config |= {
                "num_experts": keys.count("expert_count"),
                "num_experts_per_tok": keys.count("expert_used_count"),
                "moe_intermediate_size": keys.count("expert_feed_forward_length"),
                "norm_topk_prob": True,  # llama.cpp always divides by the sum
            }
        return config

    def links(self, config: GroupedConfig) -> Iterator[Link]:
        """Every tensor of the network."""
        hidden, K = config.hidden_size, config.head_dim
        heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads, "v": config.num_key_value_heads}
        yield from outer_links(config.vocab_size, hidden, config.tie_word_embeddings)
        for layer in range(config.num_hidden_layers):
            ours, theirs = f"model.layers.{layer}", f"blk.{layer}"
            yield plain(f"{ours}.input_layernorm", (hidden,), f"{theirs}.attn_norm")
            for part, count in heads.items():
                form: Form = Pairs(count) if self.in_pairs and part != "v" else SAME
                module, name = f"{ours}.self_attn.{part}_proj", f"{theirs}.attn_{part}"
                yield Link(f"{module}.weight", (count * K, hidden), (f"{name}.weight",), form)
                if config.qkv_bias:
                    yield Link(f"{module}.bias", (count * K,), (f"{name}.bias",), form)
                if config.qk_norm and part != "v":
                    yield plain(f"{ours}.self_attn.{part}_norm", (K,), f"{theirs}.attn_{part}_norm")
            yield plain(f"{ours}.self_attn.o_proj", (hidden, heads["q"] * K), f"{theirs}.attn_output")
            yield plain(f"{ours}.post_attention_layernorm", (hidden,), f"{theirs}.ffn_norm")
            routing = config.routing
            if routing is not None and config.is_moe_layer(layer):
                yield from expert_links(layer, hidden, routing.hidden, routing.experts)
            else:
                yield from mlp_links(layer, hidden, config.intermediate_size)

    def network_keys(self, config: GroupedConfig) -> dict[str, Value]:
        """GGUF key -> value. Raises CheckpointError where llama.cpp would compute another network."""
        keys = decoder_keys(config) | {
            "attention.head_count_kv": config.num_key_value_heads,
            "attention.key_length": config.head_dim,
            "attention.value_length": config.head_dim,
        }
        if isinstance(config, Qwen3MoeConfig):
            keys |= _expert_keys(config)
        keys |= scaling_keys(config.rope_scaling)
        return {f"{self.name}.{key}": value for key, value in keys.items()}

    def constants(self, config: GroupedConfig) -> dict[str, np.ndarray]:
        """What a file holds beside the network's weights."""
        return scaling_constants(config.rope_scaling, config.rope_theta, config.head_dim)

    def small_differences(self, config: GroupedConfig) -> list[str]:
        """What llama.cpp computes a little differently: nothing."""
        return []

    @property
    def _has_experts(self) -> bool:
        return self.model_type == "qwen3_moe"


def _expert_keys(config: Qwen3MoeConfig) -> dict[str, Value]:
    reasons = {
        "norm_topk_prob is false, and there the chosen weights are divided by their sum": not config.norm_topk_prob,
        "some layers hold no experts, and there every layer does": not all(
            config.is_moe_layer(layer) for layer in range(config.num_hidden_layers)
        ),
    }
    for reason, holds in reasons.items():
        if holds:
            raise CheckpointError(
                f"llama.cpp would compute another network: {reason}; serve it with `ziphius serve` or vLLM"
            )
    return {
        "expert_count": config.num_experts,
        "expert_used_count": config.num_experts_per_tok,
        "expert_feed_forward_length": config.moe_intermediate_size,
    }
