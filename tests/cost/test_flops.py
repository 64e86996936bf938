"""Closed-form counts against the published numbers (facts 1.3) and against the modules themselves."""

import json
import subprocess
import sys

import pytest
import torch

from ziphius.cost.flops import (
    count_parameters,
    forward_flops_per_token,
    kv_bytes_per_token,
    train_flops_per_token,
    weight_bytes,
)
from ziphius.model.config import ModelConfig
from ziphius.model.presets import ladder, preset, preset_names
from ziphius.model.transformer import Transformer

# model: total, active, active without the input embedding; billions, as printed
PUBLISHED = {
    "deepseek-v3": ("671.03", "37.55", "36.63"),
    "deepseek-r1": ("671.03", "37.55", "36.63"),
    "deepseek-v2": ("235.74", "21.38", "20.85"),
    "deepseek-v2-lite": ("15.71", "2.66", "2.45"),
    "moonlight-16b-a3b": ("15.96", "2.91", "2.58"),
    "kimi-k2": ("1026.41", "32.86", "31.69"),
    "r1-distill-llama-8b": ("8.03", "8.03", "7.50"),
    "r1-distill-llama-70b": ("70.55", "70.55", "69.50"),
    "smollm2-135m": ("0.13", "0.13", "0.13"),
    "r1-distill-qwen-1.5b": ("1.78", "1.78", "1.54"),
    "r1-distill-qwen-7b": ("7.62", "7.62", "7.07"),
    "r1-distill-qwen-14b": ("14.77", "14.77", "13.99"),
    "r1-distill-qwen-32b": ("32.76", "32.76", "31.99"),
    "qwen3-8b": ("8.19", "8.19", "7.57"),
    "qwen3-30b-a3b": ("30.53", "3.35", "3.04"),
}


@pytest.mark.parametrize("name", preset_names())
def test_counts_are_the_published_ones(name):
    counts = count_parameters(preset(name))
    got = tuple(f"{value / 1e9:.2f}" for value in (counts.total, counts.active, counts.active_without_embedding))
    assert got == PUBLISHED[name]


def test_moonlight_prints_its_counts_without_both_embeddings():
    counts = count_parameters(preset("moonlight-16b-a3b"))
    both = counts.embedding + counts.head
    assert f"{(counts.total - both) / 1e9:.2f}" == "15.29"
    assert f"{(counts.active - both) / 1e9:.2f}" == "2.24"


def test_v3_parts():
    counts = count_parameters(preset("deepseek-v3"))
    assert f"{counts.attention / 1e6:.1f}" == "187.1"
    assert f"{counts.expert / 1e6:.2f}" == "44.04"
    assert f"{counts.embedding / 1e9:.1f}" == f"{counts.head / 1e9:.1f}" == "0.9"


def test_v3_prediction_module_is_what_the_readme_prints_without_its_projection():
    """README_WEIGHTS.md: 11.5B own weights, 2.4B active. Both leave out eh_proj, which is 0.10B more."""
    config = preset("deepseek-v3")
    counts = count_parameters(config)
    eh_proj = 2 * config.hidden_size**2
    assert f"{(counts.mtp_total - eh_proj) / 1e9:.1f}" == "11.5"
    assert f"{(counts.mtp_active - eh_proj) / 1e9:.1f}" == "2.4"
    assert f"{counts.mtp_total / 1e9:.2f}" == "11.61"
    assert f"{counts.mtp_active / 1e9:.2f}" == "2.54"
    # The published folder repeats embedding and head in the module's layer: "685B" on the card.
    on_disk = counts.total + counts.mtp_total + counts.embedding + counts.head
    assert on_disk / 1e9 == pytest.approx(684.5, abs=0.05)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("deepseek-v3", 70_272), ("deepseek-v2", 69_120), ("deepseek-v2-lite", 31_104), ("moonlight-16b-a3b", 31_104)],
)
def test_cache_bytes(name, expected):
    assert kv_bytes_per_token(preset(name)) == expected


def test_frozen_weights_have_no_gradient_of_their_own():
    config = preset("smollm2-135m")
    weights = count_parameters(config).active_without_embedding
    whole, low_rank = (train_flops_per_token(config, 512, frozen=frozen) for frozen in (False, True))
    assert whole - low_rank == 2 * weights


def test_train_flops_are_the_published_ones():
    assert f"{train_flops_per_token(preset('deepseek-v3'), 4096) / 1e9:.1f}" == "250.5"
    assert f"{train_flops_per_token(preset('deepseek-v2'), 4096) / 1e9:.1f}" == "155.3"
    assert f"{train_flops_per_token(preset('deepseek-v3'), 4096, causal=False) / 1e9:.0f}" == "281"
    with_mtp = train_flops_per_token(preset("deepseek-v3"), 4096, mtp=True) / 1e9
    assert with_mtp == pytest.approx(260.0, rel=0.005)  # Megatron-Bridge's own count, facts 1.3


def test_training_is_three_forward_passes():
    config = preset("deepseek-v3")
    assert train_flops_per_token(config, 4096) == pytest.approx(3 * forward_flops_per_token(config, 2048))


def test_absorbed_decoding_costs_more_arithmetic_per_cached_token():
    config = preset("deepseek-v3")
    zero = forward_flops_per_token(config, 0)
    expanded = forward_flops_per_token(config, 1000) - zero
    absorbed = forward_flops_per_token(config, 1000, absorbed=True) - zero
    assert absorbed / expanded == pytest.approx((2 * 512 + 64) / (192 + 128))


SHAPES = (
    {name: preset(name) for name in preset_names()}
    | {f"ladder-{depth}": ladder(depth) for depth in (2, 3, 4, 6, 8, 11, 12, 16, 18, 24)}
    | {
        "tied": ladder(4, tie_word_embeddings=True),
        "every other layer dense": ladder(6, moe_layer_freq=2),
        "dense": ladder(4, n_routed_experts=None),
        "no prediction": ladder(4, num_nextn_predict_layers=0),
        "three predictions": ladder(4, num_nextn_predict_layers=3, moe_layer_freq=2),
    }
)


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_counts_are_those_of_the_modules(config: ModelConfig):
    with torch.device("meta"):
        model = Transformer(config)
    counts = count_parameters(config)
    module = sum(p.numel() for p in model.mtp.parameters())
    assert counts.mtp_total == module
    assert counts.total == sum(p.numel() for p in model.parameters()) - module
    assert counts.attention == sum(p.numel() for p in model.model.layers[0].self_attn.parameters())
    routed = [(layer.mlp.experts, layer.mlp) for layer in model.model.layers if hasattr(layer.mlp, "experts")]
    if routed:
        experts, mlp = routed[0]
        E, K = config.routing.experts, config.routing.top_k
        assert counts.expert == sum(p.numel() for p in experts.parameters()) / E
        assert counts.moe == sum(p.numel() for p in mlp.parameters())
        assert counts.total - counts.active == len(routed) * (E - K) * counts.expert


def test_ladder_sizes_are_those_of_its_docstring():
    sizes = {depth: f"{count_parameters(ladder(depth)).total / 1e6:.2g}" for depth in (4, 8, 12)}
    assert sizes == {4: "1.3", 8: "8.7", 12: "48"}
    assert round(count_parameters(ladder(18)).total / 1e6) == 164


def test_counting_needs_no_torch():
    code = "import sys, ziphius.cost.flops; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_caches_of_grouped_query_attention(tables):
    """ISCA (arXiv 2505.09343) table 1."""
    assert kv_bytes_per_token(tables.shape("qwen2.5-72b")) == 327_680
    assert kv_bytes_per_token(tables.shape("llama-3.1-405b")) == 516_096
    assert kv_bytes_per_token(preset("deepseek-v3"), 1) == 35_136
    assert kv_bytes_per_token(tables.shape("llama-2-7b")) == 2 * 32 * 128 * 32 * 2  # every head its own


def test_arithmetic_of_dense_networks(tables):
    llama = tables.shape("llama-3-8b")
    weights = 8_030_261_248 - 128_256 * 4096  # the card's count less the input embedding
    attention = 6 * 32 * 32 * 256 * 8192 / 2
    assert train_flops_per_token(llama, 8192) == pytest.approx(6 * weights + attention, rel=1e-6)
    assert forward_flops_per_token(llama, 100, absorbed=True) == forward_flops_per_token(llama, 100)


def test_windows_bound_what_is_attended_to(tables):
    """nanochat's own count of its d24: 4.33e19 FLOPs for 8.76B tokens, not causal, a quarter of the layers full."""
    d24 = tables.shape("nanochat-d24")
    assert train_flops_per_token(d24, 2048, causal=False) == pytest.approx(4.33e19 / 8.76e9, rel=0.01)
    assert d24.mean_causal_context(2048) < 1024
    assert d24.mean_causal_context(512) == 256


def test_bytes_of_weights():
    v3 = preset("deepseek-v3")
    assert weight_bytes(v3) == 2 * count_parameters(v3).total
    assert weight_bytes(v3, 1) / 1e9 == pytest.approx(671 + 2 * 0.93, rel=0.002)  # embedding and head stay BF16
    assert weight_bytes(v3, 0.5) < weight_bytes(v3, 1) < weight_bytes(v3, 2)


def test_a_config_json_of_other_families_is_counted(tmp_path):
    from ziphius.cost.shape import shape_from_folder, shape_from_hf

    config = {
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100, "tie_word_embeddings": True,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    shape = shape_from_folder(tmp_path)
    per_layer = 64 * (4 + 2 * 2) * 16 + 64 * 64 + 3 * 64 * 128 + 2 * 64
    assert count_parameters(shape).total == 100 * 64 + 2 * per_layer + 64
    with pytest.raises(ValueError, match="model_type is 'bert'; the planner knows"):
        shape_from_hf({"model_type": "bert"})
    with pytest.raises(ValueError, match=r"config\.json lacks 'vocab_size'"):
        shape_from_hf({k: v for k, v in config.items() if k != "vocab_size"})
    with pytest.raises(FileNotFoundError, match=r"no such config\.json"):
        shape_from_folder(tmp_path / "nowhere")
