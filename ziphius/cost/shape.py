"""A network as the planner sees it: the sizes of its matrices, for latent (MLA) and grouped-query attention alike."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ziphius.model.config import ModelConfig
from ziphius.model.deepseek.config import DeepSeekConfig
from ziphius.model.families import config_from_hf

GROUPED = ("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "olmo2", "olmo3", "smollm3", "gpt_oss")


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder. With `kv_lora_rank` attention is latent (MLA), else grouped-query with `kv_heads`.

    `qk_head_dim` and `v_head_dim` are per head; `rope_dim` is MLA's shared part. `mlp_matrices` is 3 for gated MLPs and
    2 for plain ones. Layer i holds experts when i ≥ `dense_layers` and i mod `moe_every` is `moe_offset`. `window`
    tokens are all that `window_share` of the layers attend to. `moe_groups`/`top_groups`: node-limited routing.
    """

    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    qk_head_dim: int
    v_head_dim: int
    intermediate: int
    q_lora_rank: int | None = None
    kv_lora_rank: int | None = None
    rope_dim: int = 0
    experts: int = 0
    shared_experts: int = 0
    top_k: int = 0
    moe_intermediate: int = 0
    moe_groups: int = 1
    top_groups: int = 1
    dense_layers: int = 0
    moe_every: int = 1
    moe_offset: int = 0
    mtp_layers: int = 0
    mlp_matrices: int = 3
    tied: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    window: int | None = None
    window_share: float = 0.0

    @property
    def mla(self) -> bool:
        return self.kv_lora_rank is not None

    def is_moe_layer(self, layer: int) -> bool:
        return self.experts > 0 and layer >= self.dense_layers and layer % self.moe_every == self.moe_offset

    @property
    def moe_layers(self) -> int:
        """How many of the main stack's layers hold experts."""
        return sum(self.is_moe_layer(layer) for layer in range(self.layers))

    def mean_context(self, context: float) -> float:
        """Tokens that a token at position `context` attends to, on average over the layers."""
        if self.window is None:
            return context
        return (1 - self.window_share) * context + self.window_share * min(context, self.window)

    def mean_causal_context(self, seq_len: int) -> float:
        """Tokens attended to, averaged over the positions of a sequence and over the layers."""
        full = seq_len / 2
        if self.window is None or self.window >= seq_len:
            return full
        windowed = self.window * (1 - self.window / (2 * seq_len))
        return (1 - self.window_share) * full + self.window_share * windowed


def shape_of(config: ModelConfig) -> Shape:
    """The shape of a network that the trainer knows."""
    if not isinstance(config, DeepSeekConfig):
        return _grouped(config.to_hf())
    return Shape(
        vocab=config.vocab_size,
        hidden=config.hidden_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=config.num_attention_heads,
        qk_head_dim=config.qk_head_dim,
        v_head_dim=config.v_head_dim,
        intermediate=config.intermediate_size,
        q_lora_rank=config.q_lora_rank,
        kv_lora_rank=config.kv_lora_rank,
        rope_dim=config.qk_rope_head_dim,
        experts=config.n_routed_experts or 0,
        shared_experts=config.n_shared_experts if config.n_routed_experts else 0,
        top_k=config.num_experts_per_tok if config.n_routed_experts else 0,
        moe_intermediate=config.moe_intermediate_size,
        moe_groups=config.n_group,
        top_groups=config.topk_group,
        dense_layers=config.first_k_dense_replace,
        moe_every=config.moe_layer_freq,
        mtp_layers=config.num_nextn_predict_layers,
        tied=config.tie_word_embeddings,
    )


def shape_from_hf(raw: dict[str, Any]) -> Shape:
    """The shape that a `config.json` dictionary describes. Raises ValueError for a family that is not known."""
    family = raw.get("model_type")
    if family in ("deepseek_v2", "deepseek_v3", "kimi_k2"):
        return shape_of(config_from_hf(raw))
    if family not in GROUPED:
        known = ", ".join(("deepseek_v2", "deepseek_v3", "kimi_k2", *GROUPED))
        raise ValueError(f"model_type is {family!r}; the planner knows {known}")
    return _grouped(raw)


def _grouped(raw: dict[str, Any]) -> Shape:
    """The shape of a decoder with grouped-query attention. Raises ValueError for a key that is missing."""
    family = raw["model_type"]
    try:
        heads, hidden = raw["num_attention_heads"], raw["hidden_size"]
        head_dim = raw.get("head_dim") or hidden // heads
        experts = raw.get("num_experts") or raw.get("num_local_experts") or 0
        return Shape(
            vocab=raw["vocab_size"],
            hidden=hidden,
            layers=raw["num_hidden_layers"],
            heads=heads,
            kv_heads=raw.get("num_key_value_heads") or heads,
            qk_head_dim=head_dim,
            v_head_dim=head_dim,
            intermediate=raw["intermediate_size"],
            experts=experts,
            shared_experts=raw.get("n_shared_experts") or 0,
            top_k=raw.get("num_experts_per_tok") or 0,
            moe_intermediate=raw.get("moe_intermediate_size") or (raw["intermediate_size"] if experts else 0),
            dense_layers=raw.get("first_k_dense_replace") or 0,
            moe_every=(step := raw.get("decoder_sparse_step") or 1),
            moe_offset=step - 1,
            mlp_matrices=2 if raw.get("hidden_act") in ("gelu", "relu2") else 3,
            tied=bool(raw.get("tie_word_embeddings")),
            qkv_bias=family == "qwen2" or bool(raw.get("attention_bias")),
            qk_norm=family in ("qwen3", "qwen3_moe", "olmo2", "olmo3"),
            window=raw.get("sliding_window"),
            window_share=raw.get("sliding_window_share", 0.0),
        )
    except KeyError as error:
        raise ValueError(f"config.json lacks {error.args[0]!r}, which a plan needs") from None


def shape_from_folder(path: Path) -> Shape:
    """The shape of a model folder, or of a `config.json` itself. Raises FileNotFoundError or ValueError."""
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such config.json")
    try:
        return shape_from_hf(json.loads(file.read_text()))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: not readable as JSON: {error}") from None
