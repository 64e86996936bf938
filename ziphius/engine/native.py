"""A model described to the native decoder: which tensor is which."""

from __future__ import annotations

from torch import nn

from ziphius.model.attention import LATENT_EPS
from ziphius.model.experts import MLP, MoE
from ziphius.model.int8 import Int8Linear
from ziphius.model.layers import Linear
from ziphius.model.rope import rope_table
from ziphius.model.transformer import Block, Transformer
from ziphius.ops.native.decoder import Decoder, DecoderShape, LayerWeights, Matrix


def describe(model: Transformer) -> Decoder:
    """All layers of `model`, the prediction modules' after the main ones, as `LatentMemory` counts them."""
    c = model.config
    grouped = c.topk_method != "greedy" and c.n_group > 1
    normalise = c.norm_topk_prob and c.num_experts_per_tok > 1
    scaled = not (normalise and c.model_type == "deepseek_v2")
    shape = DecoderShape(
        heads=c.num_attention_heads, nope=c.qk_nope_head_dim, rope=c.qk_rope_head_dim, value=c.v_head_dim,
        latent=c.kv_lora_rank, top_k=c.num_experts_per_tok, groups=c.n_group if grouped else 1,
        kept_groups=c.topk_group if grouped else 0, sigmoid=c.scoring_func == "sigmoid", normalise=normalise,
        by_two_best=c.topk_method == "noaux_tc", eps=c.rms_norm_eps, latent_eps=LATENT_EPS, scale=c.softmax_scale,
        factor=c.routed_scaling_factor if scaled else 1.0,
    )  # fmt: skip
    blocks = [*model.model.layers, *(module.block for module in model.mtp)]
    cos, sin = rope_table(c, c.max_position_embeddings, "cpu")
    return Decoder(shape, [_layer(block) for block in blocks], cos, sin)


def matrix_of(module: nn.Module) -> Matrix:
    """What a linear layer multiplies by, as it lies in memory."""
    if isinstance(module, Int8Linear):
        return module.matrix
    assert isinstance(module, Linear)
    return module.weight


def _layer(block: Block) -> LayerWeights:
    attention, mlp = block.self_attn, block.mlp
    low = attention.config.q_lora_rank is not None
    dense = mlp.shared_experts if isinstance(mlp, MoE) else mlp
    assert isinstance(dense, MLP)
    weights = LayerWeights(
        input_norm=block.input_layernorm.weight,
        q_a=matrix_of(attention.q_a_proj) if low else None,
        q_norm=attention.q_a_layernorm.weight if low else None,
        q_b=matrix_of(attention.q_b_proj if low else attention.q_proj),
        kv_a=matrix_of(attention.kv_a_proj_with_mqa),
        kv_norm=attention.kv_a_layernorm.weight,
        kv_b=attention.kv_b_proj.weight,
        o=matrix_of(attention.o_proj),
        post_norm=block.post_attention_layernorm.weight,
        gate_up=matrix_of(dense.gate_up_proj),
        down=matrix_of(dense.down_proj),
    )
    if isinstance(mlp, MoE):
        weights.gate = mlp.gate.weight
        weights.experts_up, weights.experts_down = mlp.experts.gate_up_proj, mlp.experts.down_proj
        if mlp.gate.config.topk_method == "noaux_tc":
            weights.gate_bias = mlp.gate.e_score_correction_bias
    return weights
