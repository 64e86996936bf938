"""A model described to the native decoder: which tensor is which."""

from __future__ import annotations

from typing import Any

from torch import nn

from ziphius.model.config import ModelConfig, Routing
from ziphius.model.deepseek.attention import LATENT_EPS, LatentAttention
from ziphius.model.deepseek.config import DeepSeekConfig
from ziphius.model.experts import MLP, Experts, MoE
from ziphius.model.grouped.attention import GroupedAttention
from ziphius.model.layers import Linear
from ziphius.model.packed import PackedLinear
from ziphius.model.pieces import ExpertList, GateUp
from ziphius.model.rope import rope_table
from ziphius.model.transformer import Block, Transformer
from ziphius.ops.matrix import Matrix
from ziphius.ops.native.decoder import Decoder, DecoderShape, GateRule, LatentShape, LayerWeights, MlpWeights


def describe(model: Transformer) -> Decoder:
    """All layers of `model`, the prediction modules' after the main ones, as `PagedMemory` counts them."""
    c = model.config
    shape = DecoderShape(c.num_attention_heads, c.cache_layout, _latent_shape(c), c.rms_norm_eps, c.softmax_scale)
    blocks = [*model.model.layers, *(module.block for module in model.mtp)]
    cos, sin = rope_table(c, c.max_position_embeddings, "cpu")
    rule = None if c.routing is None else _gate_rule(c.routing)
    paged = any(isinstance(module, ExpertList) and module.paged for module in model.modules())
    return Decoder(shape, rule, [_layer(block) for block in blocks], cos, sin, paged)


def matrix_of(module: nn.Module) -> Matrix:
    """What a linear layer multiplies by, as it lies in memory."""
    if isinstance(module, PackedLinear):
        return module.matrix
    assert isinstance(module, Linear)
    return module.weight


def _latent_shape(c: ModelConfig) -> LatentShape | None:
    if not isinstance(c, DeepSeekConfig):
        return None
    return LatentShape(c.qk_nope_head_dim, c.qk_rope_head_dim, c.v_head_dim, c.kv_lora_rank, LATENT_EPS)


def _gate_rule(rule: Routing) -> GateRule:
    return GateRule(
        top_k=rule.top_k, groups=rule.groups, kept_groups=rule.kept_groups if rule.groups > 1 else 0,
        sigmoid=rule.scoring == "sigmoid", normalise=rule.normalise, by_two_best=rule.selection_bias,
        factor=rule.factor,
    )  # fmt: skip


def _layer(block: Block) -> LayerWeights:
    attention, mlp = block.self_attn, block.mlp
    of_attention = _latent(attention) if isinstance(attention, LatentAttention) else _grouped(attention)
    weights = LayerWeights(
        input_norm=block.input_layernorm.weight,
        post_norm=block.post_attention_layernorm.weight,
        o=matrix_of(attention.o_proj),
        **of_attention,
    )
    dense = mlp.shared_experts if isinstance(mlp, MoE) else mlp
    if isinstance(dense, MLP):
        weights.dense = _mlp(dense)
    if isinstance(mlp, MoE):
        weights.router = mlp.gate.weight
        weights.experts = _experts(mlp.experts)
        if mlp.gate.routing.selection_bias:
            weights.router_bias = mlp.gate.e_score_correction_bias
    return weights


def _latent(attention: LatentAttention) -> dict[str, Any]:
    low = attention.config.q_lora_rank is not None
    return {
        "q_a": matrix_of(attention.q_a_proj) if low else None,
        "q_norm": attention.q_a_layernorm.weight if low else None,
        "q": matrix_of(attention.q_b_proj if low else attention.q_proj),
        "kv_a": matrix_of(attention.kv_a_proj_with_mqa),
        "kv_norm": attention.kv_a_layernorm.weight,
        "kv_b": attention.kv_b_proj.weight,
    }


def _grouped(attention: GroupedAttention) -> dict[str, Any]:
    projections = {"q": attention.q_proj, "k": attention.k_proj, "v": attention.v_proj}
    weights: dict[str, Any] = {name: matrix_of(projection) for name, projection in projections.items()}
    weights |= {f"{name}_bias": projection.bias for name, projection in projections.items()}
    if attention.config.qk_norm:
        weights |= {"q_norm": attention.q_norm.weight, "k_norm": attention.k_norm.weight}
    return weights


def _mlp(mlp: MLP) -> MlpWeights:
    both, down = mlp.gate_up_proj, matrix_of(mlp.down_proj)
    if isinstance(both, GateUp):
        return MlpWeights(matrix_of(both.gate), matrix_of(both.up), down)
    gate, up = both.weight.detach().chunk(2)
    return MlpWeights(gate, up, down)


def _experts(experts: Experts | ExpertList) -> list[MlpWeights]:
    if isinstance(experts, ExpertList):
        return list(map(MlpWeights, experts.gate, experts.up, experts.down))
    gate, up = experts.gate_up_proj.detach().chunk(2, dim=1)
    return list(map(MlpWeights, gate.unbind(), up.unbind(), experts.down_proj.detach().unbind()))
