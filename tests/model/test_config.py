"""config.json in and out, and what is refused."""

import json

import pytest
import transformers
from pydantic import ValidationError

from ziphius.model.families import config_from_hf
from ziphius.model.presets import ladder, preset, preset_names
from ziphius.model.scaling import YarnScaling

from .variants import VARIANTS, v2, v3, yarn

EVERY = VARIANTS | {name: preset(name) for name in preset_names()} | {"ladder": ladder(12, moe_layer_freq=2)}


@pytest.mark.parametrize("config", EVERY.values(), ids=EVERY)
def test_round_trip(config):
    written = json.loads(json.dumps(config.to_hf()))
    back = config_from_hf(written)
    assert back.model_dump() == config.model_dump()
    assert back.to_hf() == written


@pytest.mark.parametrize("config", EVERY.values(), ids=EVERY)
def test_round_trip_through_transformers(config, tmp_path):
    """transformers renames rope_scaling and drops keys; what it writes still describes the same network."""
    (tmp_path / "config.json").write_text(json.dumps(config.to_hf()))
    transformers.AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path / "theirs")
    written = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert "rope_scaling" not in written
    assert config_from_hf(written).model_dump() == config.model_dump()


DROPPED = (
    "topk_method", "scoring_func", "moe_layer_freq", "rope_theta", "num_nextn_predict_layers", "n_group", "topk_group",
    "norm_topk_prob", "first_k_dense_replace", "num_key_value_heads", "hidden_act", "rms_norm_eps",
)  # fmt: skip


def test_every_published_key_is_written():
    written = preset("deepseek-v3").to_hf()
    assert written["architectures"] == ["DeepseekV3ForCausalLM"]
    assert not [key for key in DROPPED if key not in written]
    assert written["rope_scaling"] == {
        "type": "yarn", "factor": 40, "original_max_position_embeddings": 4096,
        "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize(("config", "method", "scoring"), [(v3(), "noaux_tc", "sigmoid"), (v2(), "greedy", "softmax")])
def test_families_fill_what_is_missing(config, method, scoring):
    raw = config.to_hf()
    for key in ("topk_method", "scoring_func", "norm_topk_prob", "n_group", "moe_layer_freq", "topk_group"):
        raw.pop(key)
    back = config_from_hf(raw | {"n_group": None})
    assert (back.topk_method, back.scoring_func, back.moe_layer_freq) == (method, scoring, 1)
    assert (back.n_group, back.topk_group) == (1, 1)
    assert back.norm_topk_prob is (config.model_type == "deepseek_v3")


def test_yarn_without_scales_means_one_and_none():
    """DeepSeek's code: mscale 1, mscale_all_dim 0; the softmax is then not scaled."""
    raw = v3(rope_scaling=yarn()).to_hf()
    del raw["rope_scaling"]["mscale"], raw["rope_scaling"]["mscale_all_dim"]
    config = config_from_hf(raw)
    assert (config.rope_scaling.mscale, config.rope_scaling.mscale_all_dim) == (1.0, 0.0)
    assert config.softmax_scale == config.qk_head_dim**-0.5


def test_softmax_scale_of_v3():
    assert preset("deepseek-v3").softmax_scale * 192**0.5 == pytest.approx(1.3689**2, rel=1e-4)


def test_kimi_k2_is_a_v3():
    assert config_from_hf(preset("kimi-k2").to_hf() | {"model_type": "kimi_k2"}).model_type == "deepseek_v3"


def test_unknown_keys_are_kept():
    config = config_from_hf(v3().to_hf() | {"ep_size": 4, "torch_dtype": "bfloat16"})
    assert config.to_hf()["ep_size"] == 4
    assert config.to_hf()["torch_dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "gemma3"}, "model_type is 'gemma3'"),
        ({"rope_interleave": False}, "rope_interleave is false"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "type is 'linear'"),
        (
            {"rope_scaling": {"type": "yarn", "factor": 2, "original_max_position_embeddings": 8, "truncate": False}},
            "'truncate'",
        ),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"attention_bias": True}, "attention_bias"),
        ({"attention_dropout": 0.1}, "attention_dropout"),
    ],
)
def test_foreign_networks_are_refused(changes, reason):
    with pytest.raises(ValueError, match=reason):
        config_from_hf(v3().to_hf() | changes)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"qk_rope_head_dim": 7}, "rotary pairs need an even number"),
        ({"n_routed_experts": 9}, r"n_routed_experts \(9\) must be a multiple of n_group \(4\)"),
        ({"topk_group": 5}, r"topk_group \(5\) cannot exceed n_group \(4\)"),
        ({"num_experts_per_tok": 5}, r"num_experts_per_tok \(5\) exceeds the 4 experts"),
        ({"n_group": 8, "topk_group": 8}, "a group needs at least two"),
        ({"scoring_func": "softmax"}, "is not a published gate"),
        ({"topk_method": "greedy"}, "is not a published gate"),
        ({"hidden_size": 0}, "greater than 0"),
        ({"num_hidden_layers": 0}, "greater than 0"),
        ({"hiden_size": 8}, "Extra inputs are not permitted"),
    ],
)
def test_impossible_sizes_are_refused(changes, reason):
    with pytest.raises(ValidationError, match=reason):
        v3(**changes)


def test_impossible_yarn_is_refused():
    with pytest.raises(ValidationError, match="factor"):
        YarnScaling(factor=1.0, original_max_position_embeddings=4096)


def test_presets():
    assert preset("deepseek-r1") == preset("deepseek-v3")
    with pytest.raises(ValueError, match="no preset called 'gpt'; there are deepseek-r1"):
        preset("gpt")
    with pytest.raises(ValueError, match="depth is 1"):
        ladder(1)
