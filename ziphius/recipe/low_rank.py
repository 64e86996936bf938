"""The matrices of a network that can have low-rank updates, told from its shape. Imports no torch."""

from __future__ import annotations

from ziphius.cost.shape import Shape

Sizes = tuple[int, int, int]  # how many, rows, columns


def lora_matrices(shape: Shape, experts: bool) -> dict[str, list[Sizes]]:
    """By the last part of its published name every matrix of the main layers that can have an update: how many there
    are of which size; those of routed experts with `experts`."""
    D, H, L = shape.hidden, shape.heads, shape.layers
    dense, moe = L - shape.moe_layers, shape.moe_layers
    F, shared = shape.intermediate, shape.shared_experts * shape.moe_intermediate
    named = {"o_proj": [(L, D, H * shape.v_head_dim)]}
    if shape.kv_lora_rank is None:
        named["q_proj"] = [(L, H * shape.qk_head_dim, D)]
        named |= {name: [(L, shape.kv_heads * shape.qk_head_dim, D)] for name in ("k_proj", "v_proj")}
    else:
        C = shape.kv_lora_rank
        named["kv_a_proj_with_mqa"] = [(L, C + shape.rope_dim, D)]
        named["kv_b_proj"] = [(L, H * (shape.qk_head_dim - shape.rope_dim + shape.v_head_dim), C)]
        if shape.q_lora_rank is None:
            named["q_proj"] = [(L, H * shape.qk_head_dim, D)]
        else:
            named["q_a_proj"] = [(L, shape.q_lora_rank, D)]
            named["q_b_proj"] = [(L, H * shape.qk_head_dim, shape.q_lora_rank)]
    for name in ("gate_proj", "up_proj", "down_proj"):
        routed = [(moe * shape.experts, shape.moe_intermediate, D)] if experts else []
        named[name] = [(dense, F, D), (moe if shared else 0, shared, D), *routed]
    there = {name: [sizes for sizes in matrices if sizes[0]] for name, matrices in named.items()}
    return {name: matrices for name, matrices in there.items() if matrices}
