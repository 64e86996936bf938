"""Where transformers and DeepSeek's own code differ, each difference is shown to exist and we follow DeepSeek's.

DeepSeek's own: modeling_deepseek.py of its published folders, and DeepSeek-V3/inference/model.py. If one of these
tests fails because transformers changed its mind, the difference is gone: move the case to test_parity.
"""

import pytest
import torch
from transformers import AutoModelForCausalLM, DeepseekV3ForCausalLM
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2TopkRouter
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE, DeepseekV3TopkRouter

from ziphius.checkpoint import load_model, save_model
from ziphius.model.experts import Gate
from ziphius.model.rope import rope_table
from ziphius.model.scaling import yarn_mscale

from .variants import network, randomise, tokens_of, v2, v3, yarn


def gates(config, router_class, tmp_path):
    """Our gate and theirs with the same weights; both read the config from one folder."""
    save_model(network(config), tmp_path)
    theirs = router_class(AutoModelForCausalLM.from_pretrained(tmp_path).config)
    ours = Gate(config.hidden_size, config.routing)
    randomise(ours.state_dict(), seed=3)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(50, config.hidden_size, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        scores, indices, weights = ours(x)
        _, their_weights, their_indices = theirs(x)
    return scores, (indices, weights), (their_indices, their_weights)


def test_v2_normalises_when_told_to(tmp_path):
    """transformers' V2 router ignores norm_topk_prob; DeepSeek's divides by the sum, and then does not scale."""
    scores, (indices, weights), (theirs, their_weights) = gates(v2(norm_topk_prob=True), DeepseekV2TopkRouter, tmp_path)
    assert torch.equal(indices.sort().values, theirs.sort().values)
    torch.testing.assert_close(weights.sum(-1), torch.ones(50))
    torch.testing.assert_close(their_weights, scores.gather(1, theirs) * 4.0)


def test_a_single_expert_keeps_its_score(tmp_path):
    """With one expert a token, transformers' V3 normalises its weight to one; DeepSeek's code wants top_k > 1 for that.

    (DeepSeek-V3/inference/model.py normalises as transformers does; no published network has one expert a token.)
    """
    config = v3(num_experts_per_tok=1)
    scores, (indices, weights), (theirs, their_weights) = gates(config, DeepseekV3TopkRouter, tmp_path)
    assert torch.equal(indices, theirs)
    torch.testing.assert_close(weights, scores.gather(1, indices) * 2.5)
    torch.testing.assert_close(their_weights, torch.full((50, 1), 2.5))


def test_groups_left_out_are_never_chosen_with_negative_scores(tmp_path):
    """transformers filled left-out groups with 0.0 until lately, which beats negative biased scores. −∞ in both now."""
    config = v3()
    save_model(network(config), tmp_path)
    theirs = DeepseekV3TopkRouter(AutoModelForCausalLM.from_pretrained(tmp_path).config)
    ours = Gate(config.hidden_size, config.routing)
    randomise(ours.state_dict(), seed=3)
    ours.e_score_correction_bias.fill_(-3.0)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(50, config.hidden_size, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        _, indices, _ = ours(x)
        assert torch.equal(indices.sort().values, theirs(x)[2].sort().values)
    groups = indices // (config.n_routed_experts // config.n_group)
    assert all(len(set(row.tolist())) <= config.topk_group for row in groups)


def test_moe_layer_freq(tmp_path):
    """transformers puts experts into every layer from first_k_dense_replace on; DeepSeek's code skips by frequency."""
    config = v3(num_hidden_layers=4, moe_layer_freq=2)
    ours = network(config)
    save_model(ours, tmp_path)
    assert [config.is_moe_layer(layer) for layer in range(4)] == [False, False, True, False]
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert [isinstance(layer.mlp, DeepseekV3MoE) for layer in theirs.model.layers] == [False, True, True, True]
    tokens = tokens_of(config, (1, 16))
    assert torch.equal(load_model(tmp_path)(tokens).logits, ours(tokens).logits)


def test_mscale_without_mscale_all_dim(tmp_path):
    """Without mscale_all_dim, transformers scales cos and sin as if mscale were 1; DeepSeek's code uses mscale."""
    config = v3(rope_scaling=yarn(mscale=0.5))
    save_model(network(config), tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    cos, _ = rope_table(config, 1)
    assert cos[0, 0] == pytest.approx(yarn_mscale(8.0, 0.5))
    assert theirs.model.rotary_emb.attention_scaling == pytest.approx(yarn_mscale(8.0, 1.0))
    assert config.softmax_scale == pytest.approx(theirs.model.layers[0].self_attn.scaling)


def test_latent_norms_keep_their_eps(tmp_path):
    """No difference, and easily got wrong: rms_norm_eps does not reach the norms on the latents, in either code."""
    config = v3(rms_norm_eps=0.3)
    save_model(network(config), tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).model.layers[0]
    ours = load_model(tmp_path).model.layers[0]
    for side, eps in ((ours, "eps"), (theirs, "variance_epsilon")):
        assert getattr(side.input_layernorm, eps) == 0.3
        assert getattr(side.self_attn.kv_a_layernorm, eps) == 1e-6
        assert getattr(side.self_attn.q_a_layernorm, eps) == 1e-6


def test_prediction_modules_are_dropped_on_the_way_through_transformers(tmp_path):
    """transformers keeps num_nextn_predict_layers and writes no such weights: what it saves loads here without them."""
    config = v3(num_nextn_predict_layers=1)
    ours = network(config)
    save_model(ours, tmp_path / "ours")
    AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32).save_pretrained(tmp_path / "theirs")
    with pytest.warns(UserWarning, match="no multi-token-prediction weights"):
        back = load_model(tmp_path / "theirs")
    assert len(back.mtp) == 0
    tokens = tokens_of(config, (1, 16))
    assert torch.equal(back(tokens).logits, ours(tokens).logits)


def test_transformers_knows_prediction_modules_at_layer_61_only():
    """Which is why test_mtp has to name the layer for small networks."""
    assert DeepseekV3ForCausalLM._keys_to_ignore_on_load_unexpected == [r"model\.layers\.61.*"]
