"""The name table covers every weight once, and gives the published names."""

import pytest
import torch

from ziphius.checkpoint.names import layer_of, published_places, shared_copies
from ziphius.model.presets import ladder, preset
from ziphius.model.transformer import Transformer

CONFIGS = {
    "v3": ladder(2, vocab_size=64),
    "tied": ladder(2, vocab_size=64, tie_word_embeddings=True),
    "compressed queries": ladder(12, vocab_size=64, num_hidden_layers=2),
    "two prediction modules": ladder(2, vocab_size=64, num_nextn_predict_layers=2),
    "dense": ladder(2, vocab_size=64, n_routed_experts=None),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_each_element_is_covered_once(config):
    state = Transformer(config).state_dict()
    seen = {name: torch.zeros(tensor.shape, dtype=torch.int64) for name, tensor in state.items()}
    for place in published_places(state, config).values():
        seen[place.name][place.at] += 1
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    for name, count in seen.items():
        assert torch.all(count == (0 if name in tied else 1)), name


def test_names_of_v3():
    config = preset("deepseek-v3").model_copy(update={"num_hidden_layers": 4, "n_routed_experts": 8})
    with torch.device("meta"):
        state = Transformer(config).state_dict()
    names = published_places(state, config)
    for name in (
        "model.embed_tokens.weight",
        "model.layers.0.mlp.gate_proj.weight",
        "model.layers.0.self_attn.q_a_layernorm.weight",
        "model.layers.3.mlp.gate.e_score_correction_bias",
        "model.layers.3.mlp.experts.7.up_proj.weight",
        "model.layers.3.mlp.shared_experts.down_proj.weight",
        "model.layers.4.enorm.weight",
        "model.layers.4.hnorm.weight",
        "model.layers.4.eh_proj.weight",
        "model.layers.4.shared_head.norm.weight",
        "model.layers.4.input_layernorm.weight",
        "model.layers.4.mlp.experts.0.down_proj.weight",
        "model.norm.weight",
        "lm_head.weight",
    ):
        assert name in names
    assert not any(name.startswith("mtp.") or "gate_up" in name for name in names)
    gate = names["model.layers.3.mlp.experts.5.gate_proj.weight"]
    assert state[gate.name][gate.at].shape == (2048, 7168)


def test_copies():
    config = ladder(2, num_nextn_predict_layers=1)
    assert shared_copies(config) == {
        "model.layers.2.embed_tokens.weight": "model.embed_tokens.weight",
        "model.layers.2.shared_head.head.weight": "lm_head.weight",
    }
    tied = shared_copies(config.model_copy(update={"tie_word_embeddings": True}))
    assert set(tied.values()) == {"model.embed_tokens.weight"}
    assert "lm_head.weight" in tied


def test_layer_of():
    assert layer_of("model.layers.61.enorm.weight") == 61
    assert layer_of("model.norm.weight") is None
