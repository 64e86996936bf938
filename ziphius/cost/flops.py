"""How many parameters a network has, and the arithmetic and cache a token costs. Closed forms, no torch.

Every count names its basis, because published ones differ: with or without the input embedding (a lookup, no
arithmetic), causal or not, with or without multi-token prediction. One multiply–add is two FLOPs.
"""

from __future__ import annotations

from dataclasses import dataclass

from ziphius.model.config import ModelConfig


@dataclass(frozen=True)
class ParameterCounts:
    """Weights of a network; norms included, the gates' selection bias not (it is no weight: no gradient touches it).

    `total`, `active`, `active_without_embedding` leave multi-token prediction out; `mtp_total` is what its modules add,
    `mtp_active` what they use per token, with the shared embedding and head once a module. `active` counts the input
    embedding and the head whole. The rest are parts: `attention`, `dense_mlp`, `moe` are one layer's (0 where there is
    no such layer), `expert` is one routed expert.
    """

    total: int
    active: int
    active_without_embedding: int
    mtp_total: int
    mtp_active: int
    mtp_active_without_embedding: int
    embedding: int
    head: int
    attention: int
    dense_mlp: int
    moe: int
    expert: int


def count_parameters(config: ModelConfig) -> ParameterCounts:
    """Count the weights that `Transformer(config)` has, and those that one token meets."""
    D, experts = config.hidden_size, config.n_routed_experts or 0
    embedding = config.vocab_size * D
    head = embedding  # the product with the head is computed whether or not the matrix is the embedding's own
    attention = _attention(config)
    dense_mlp = 3 * D * config.intermediate_size
    expert = 3 * D * config.moe_intermediate_size
    gate = experts * D
    shared = config.n_shared_experts * expert
    moe = gate + shared + experts * expert
    moe_active = gate + shared + config.num_experts_per_tok * expert

    def layers(first: int, count: int, experts_of_a_layer: int) -> int:
        """Blocks `first` … `first + count − 1`: attention, two norms, and an MLP or experts."""
        moe_layers = sum(config.is_moe_layer(layer) for layer in range(first, first + count))
        return count * (attention + 2 * D) + moe_layers * experts_of_a_layer + (count - moe_layers) * dense_mlp

    depth, modules = config.num_hidden_layers, config.num_nextn_predict_layers
    joining = modules * (2 * D * D + 3 * D)  # eh_proj and the norms around it
    active_without_embedding = layers(0, depth, moe_active) + D + head
    mtp_active_without_embedding = layers(depth, modules, moe_active) + joining + modules * head
    has_moe = any(config.is_moe_layer(layer) for layer in range(depth + modules))
    has_dense = not all(config.is_moe_layer(layer) for layer in range(depth + modules))
    return ParameterCounts(
        total=layers(0, depth, moe) + D + embedding + (0 if config.tie_word_embeddings else head),
        active=active_without_embedding + (0 if config.tie_word_embeddings else embedding),
        active_without_embedding=active_without_embedding,
        mtp_total=layers(depth, modules, moe) + joining,
        mtp_active=mtp_active_without_embedding + (0 if config.tie_word_embeddings else modules * embedding),
        mtp_active_without_embedding=mtp_active_without_embedding,
        embedding=embedding,
        head=head,
        attention=attention,
        dense_mlp=dense_mlp if has_dense else 0,
        moe=moe if has_moe else 0,
        expert=expert if has_moe else 0,
    )


def train_flops_per_token(config: ModelConfig, seq_len: int, causal: bool = True, mtp: bool = False) -> float:
    """FLOPs of forward and backward per token of sequences of `seq_len` tokens.

    6 × active parameters without the input embedding + 6·L·H·(qk_head_dim + v_head_dim)·s, where s is the mean number
    of tokens attended to: seq_len/2 when `causal`, seq_len when not. Backward counts twice forward; recomputation is
    not counted. `mtp` adds the prediction modules, each with its own pass through the head. V3 at 4,096: 250.5 GF
    causal and 281.1 not; ISCA (arXiv 2505.09343) table 2 prints 250.
    """
    counts = count_parameters(config)
    weights, layers = counts.active_without_embedding, config.num_hidden_layers
    if mtp:
        weights += counts.mtp_active_without_embedding
        layers += config.num_nextn_predict_layers
    attended = seq_len / 2 if causal else seq_len
    heads = config.num_attention_heads * (config.qk_head_dim + config.v_head_dim)
    return 6 * weights + 6 * layers * heads * attended


def forward_flops_per_token(config: ModelConfig, context: float, absorbed: bool = False) -> float:
    """FLOPs of one token's forward pass that attends to `context` tokens; without the prediction modules.

    2 × active parameters without the input embedding + 2·L·H·w·context. The width w per head is
    qk_head_dim + v_head_dim on expanded keys and values (training, prefill); `absorbed` decoding works on the latents
    themselves, w = 2·kv_lora_rank + qk_rope_head_dim: more arithmetic for far fewer bytes (V2 §2.1.2).
    """
    width = config.qk_head_dim + config.v_head_dim
    if absorbed:
        width = 2 * config.kv_lora_rank + config.qk_rope_head_dim
    attention = 2 * config.num_hidden_layers * config.num_attention_heads * width * context
    return 2 * count_parameters(config).active_without_embedding + attention


def kv_bytes_per_token(config: ModelConfig, bytes_per_value: float = 2) -> float:
    """Bytes the latent cache keeps per token: (kv_lora_rank + qk_rope_head_dim)·L·bytes, without prediction modules.

    BF16 is 2 bytes a value. V3: 70,272 (ISCA table 1).
    """
    return (config.kv_lora_rank + config.qk_rope_head_dim) * config.num_hidden_layers * bytes_per_value


def _attention(config: ModelConfig) -> int:
    """One layer's latent attention with the norms on its latents."""
    D, heads, rank = config.hidden_size, config.num_attention_heads, config.kv_lora_rank
    if config.q_lora_rank is None:
        query = D * heads * config.qk_head_dim
    else:
        query = config.q_lora_rank * (D + 1 + heads * config.qk_head_dim)
    down = D * (rank + config.qk_rope_head_dim) + rank
    up = rank * heads * (config.qk_nope_head_dim + config.v_head_dim)
    return query + down + up + heads * config.v_head_dim * D
