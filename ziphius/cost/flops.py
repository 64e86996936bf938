"""How many parameters a network has, and the arithmetic and cache a token costs. Closed forms, no torch.

Every count names its basis, because published ones differ: with or without the input embedding (a lookup, no
arithmetic), causal or not, with or without multi-token prediction. One multiply–add is two FLOPs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from ziphius.cost.shape import Shape, shape_of
from ziphius.model.config import ModelConfig

Network = ModelConfig | Shape


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


def count_parameters(network: Network) -> ParameterCounts:
    """Count the weights that a network has, and those that one token meets."""
    return _count(network if isinstance(network, Shape) else shape_of(network))


@lru_cache(maxsize=64)
def _count(shape: Shape) -> ParameterCounts:
    D, experts = shape.hidden, shape.experts
    embedding = shape.vocab * D
    head = embedding  # the product with the head is computed whether or not the matrix is the embedding's own
    attention = _attention(shape)
    dense_mlp = shape.mlp_matrices * D * shape.intermediate
    expert = shape.mlp_matrices * D * shape.moe_intermediate
    gate = experts * D
    shared = shape.shared_experts * expert
    moe = gate + shared + experts * expert
    moe_active = gate + shared + shape.top_k * expert

    def layers(first: int, count: int, experts_of_a_layer: int) -> int:
        """Blocks `first` … `first + count − 1`: attention, two norms, and an MLP or experts."""
        moe_layers = sum(shape.is_moe_layer(layer) for layer in range(first, first + count))
        return count * (attention + 2 * D) + moe_layers * experts_of_a_layer + (count - moe_layers) * dense_mlp

    depth, modules = shape.layers, shape.mtp_layers
    joining = modules * (2 * D * D + 3 * D)  # eh_proj and the norms around it
    active_without_embedding = layers(0, depth, moe_active) + D + head
    mtp_active_without_embedding = layers(depth, modules, moe_active) + joining + modules * head
    has_moe = any(shape.is_moe_layer(layer) for layer in range(depth + modules))
    has_dense = not all(shape.is_moe_layer(layer) for layer in range(depth + modules))
    return ParameterCounts(
        total=layers(0, depth, moe) + D + embedding + (0 if shape.tied else head),
        active=active_without_embedding + (0 if shape.tied else embedding),
        active_without_embedding=active_without_embedding,
        mtp_total=layers(depth, modules, moe) + joining,
        mtp_active=mtp_active_without_embedding + (0 if shape.tied else modules * embedding),
        mtp_active_without_embedding=mtp_active_without_embedding,
        embedding=embedding,
        head=head,
        attention=attention,
        dense_mlp=dense_mlp if has_dense else 0,
        moe=moe if has_moe else 0,
        expert=expert if has_moe else 0,
    )


def train_flops_per_token(
    network: Network, seq_len: int, causal: bool = True, mtp: bool = False, frozen: bool = False
) -> float:
    """FLOPs of forward and backward per token of sequences of `seq_len` tokens.

    6 × active parameters without the input embedding + 6·L·H·(qk_head_dim + v_head_dim)·s, where s is the mean number
    of tokens attended to: seq_len/2 when `causal`, seq_len when not. Backward counts twice forward; recomputation is
    not counted. `mtp` adds the prediction modules, each with its own pass through the head. `frozen` weights, beside
    which low-rank updates are trained, have no gradient of their own: 4 × instead of 6 (the updates are not counted).
    V3 at 4,096: 250.5 GF causal and 281.1 not; ISCA (arXiv 2505.09343) table 2 prints 250.
    """
    shape = network if isinstance(network, Shape) else shape_of(network)
    counts = _count(shape)
    weights, layers = counts.active_without_embedding, shape.layers
    if mtp:
        weights += counts.mtp_active_without_embedding
        layers += shape.mtp_layers
    attended = shape.mean_causal_context(seq_len) if causal else shape.mean_context(seq_len)
    heads = shape.heads * (shape.qk_head_dim + shape.v_head_dim)
    return (4 if frozen else 6) * weights + 6 * layers * heads * attended


def forward_flops_per_token(network: Network, context: float, absorbed: bool = False) -> float:
    """FLOPs of one token's forward pass that attends to `context` tokens; without the prediction modules.

    2 × active parameters without the input embedding + 2·L·H·w·context. The width w per head is
    qk_head_dim + v_head_dim on expanded keys and values (training, prefill); `absorbed` decoding works on the latents
    themselves, w = 2·kv_lora_rank + qk_rope_head_dim: more arithmetic for far fewer bytes (V2 §2.1.2).
    """
    shape = network if isinstance(network, Shape) else shape_of(network)
    width = shape.qk_head_dim + shape.v_head_dim
    if absorbed and shape.kv_lora_rank is not None:
        width = 2 * shape.kv_lora_rank + shape.rope_dim
    attention = 2 * shape.layers * shape.heads * width * shape.mean_context(context)
    return 2 * _count(shape).active_without_embedding + attention


def kv_bytes_per_token(network: Network, bytes_per_value: float = 2) -> float:
    """Bytes that the cache keeps per token, without prediction modules; BF16 is 2 bytes a value, FP8 1.

    MLA: (kv_lora_rank + qk_rope_head_dim)·L·bytes, V3 70,272. Grouped-query attention: 2·kv_heads·head_dim·L·bytes,
    Qwen2.5-72B 327,680 and Llama-3.1-405B 516,096 (all ISCA table 1).
    """
    shape = network if isinstance(network, Shape) else shape_of(network)
    if shape.kv_lora_rank is not None:
        per_layer = shape.kv_lora_rank + shape.rope_dim
    else:
        per_layer = shape.kv_heads * (shape.qk_head_dim + shape.v_head_dim)
    return per_layer * shape.layers * bytes_per_value


def weight_bytes(network: Network, bytes_per_weight: float = 2, mtp: bool = False) -> float:
    """Bytes of all weights; with FP8 (1 byte) embedding, head, gates stay BF16 and blocks of 128×128 carry a scale."""
    shape = network if isinstance(network, Shape) else shape_of(network)
    counts = _count(shape)
    total = counts.total + (counts.mtp_total if mtp else 0)
    if bytes_per_weight >= 2:
        return total * bytes_per_weight
    kept = counts.embedding * (1 if shape.tied else 2) + shape.moe_layers * shape.experts * shape.hidden
    return (total - kept) * (bytes_per_weight + 4 / 128**2) + kept * 2


def _attention(shape: Shape) -> int:
    """One layer's attention with the norms on its latents (MLA) or heads (`qk_norm`), and its biases."""
    D, heads = shape.hidden, shape.heads
    out = heads * shape.v_head_dim * D
    if shape.kv_lora_rank is None:
        rows = heads * shape.qk_head_dim + shape.kv_heads * (shape.qk_head_dim + shape.v_head_dim)
        norms = 2 * shape.qk_head_dim if shape.qk_norm else 0
        return D * rows + (rows if shape.qkv_bias else 0) + norms + out
    rank = shape.kv_lora_rank
    if shape.q_lora_rank is None:
        query = D * heads * shape.qk_head_dim
    else:
        query = shape.q_lora_rank * (D + 1 + heads * shape.qk_head_dim)
    down = D * (rank + shape.rope_dim) + rank
    up = rank * heads * (shape.qk_head_dim - shape.rope_dim + shape.v_head_dim)
    return query + down + up + out
