"""A model described to the native decoder: which tensor is which."""

from __future__ import annotations

from torch import nn

from ziphius.model.config import Routing
from ziphius.model.deepseek.attention import LATENT_EPS, LatentAttention
from ziphius.model.deepseek.config import DeepSeekConfig
from ziphius.model.experts import MLP, MoE
from ziphius.model.int8 import Int8Linear
from ziphius.model.layers import Linear
from ziphius.model.rope import rope_table
from ziphius.model.transformer import Block, Transformer
from ziphius.ops.native.decoder import Decoder, DecoderShape, LayerWeights, Matrix


def describe(model: Transformer) -> Decoder:
    """All layers of `model`, the prediction modules' after the main ones, as `PagedMemory` counts them."""
    c = model.config
    assert isinstance(c, DeepSeekConfig)
    rule = c.routing or Routing(0, 0, 0)
    limited = rule.groups > 1
    shape = DecoderShape(
        heads=c.num_attention_heads, nope=c.qk_nope_head_dim, rope=c.qk_rope_head_dim, value=c.v_head_dim,
        latent=c.kv_lora_rank, top_k=rule.top_k, groups=rule.groups, kept_groups=rule.kept_groups if limited else 0,
        sigmoid=rule.scoring == "sigmoid", normalise=rule.normalise, by_two_best=rule.selection_bias,
        eps=c.rms_norm_eps, latent_eps=LATENT_EPS, scale=c.softmax_scale, factor=rule.factor,
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
    assert isinstance(attention, LatentAttention)
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
        if mlp.gate.routing.selection_bias:
            weights.gate_bias = mlp.gate.e_score_correction_bias
    return weights
