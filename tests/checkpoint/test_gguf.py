"""A GGUF file holds every weight of the network and the right words about it; what llama.cpp cannot run is refused."""

import sys

import numpy as np
import pytest
import torch

from ziphius.checkpoint import CheckpointError, save_model
from ziphius.checkpoint.gguf import write_gguf
from ziphius.checkpoint.gguf.deepseek2 import network_keys
from ziphius.checkpoint.names import published_places
from ziphius.checkpoint.stored import StoredWeights
from ziphius.model.config import ModelConfig
from ziphius.model.presets import ladder, preset
from ziphius.model.scaling import YarnScaling

gguf = pytest.importorskip("gguf")

YARN = YarnScaling(factor=8, original_max_position_embeddings=64, mscale=0.707, mscale_all_dim=0.707)
SOFTMAX = {"model_type": "deepseek_v2", "topk_method": "greedy", "scoring_func": "softmax", "norm_topk_prob": False}


@pytest.fixture
def exported(tmp_path, build):
    """`exported(config, **options)` -> the network, what was said of the file, and the file's reader."""

    def export(config, **options):
        model = build(config)
        save_model(model, tmp_path / "model")
        said = write_gguf(tmp_path / "model", tmp_path / "out.gguf", **options)
        return model, said, gguf.GGUFReader(tmp_path / "out.gguf")

    return export


def expected_tensors(model):
    """GGUF name -> value, made from the published names."""
    config, state = model.config, model.state_dict()
    published = {name: state[place.name][place.at] for name, place in published_places(state, config).items()}
    found = {"token_embd.weight": published["model.embed_tokens.weight"]}
    found["output_norm.weight"] = published["model.norm.weight"]
    if not config.tie_word_embeddings:
        found["output.weight"] = published["lm_head.weight"]
    for layer in range(config.num_hidden_layers):
        theirs, ours = f"blk.{layer}.", f"model.layers.{layer}."
        names = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
        attention = {"attn_kv_a_mqa": "kv_a_proj_with_mqa", "attn_kv_a_norm": "kv_a_layernorm", "attn_output": "o_proj"}
        if config.q_lora_rank is None:
            attention["attn_q"] = "q_proj"
        else:
            attention |= {"attn_q_a": "q_a_proj", "attn_q_a_norm": "q_a_layernorm", "attn_q_b": "q_b_proj"}
        names |= {name: f"self_attn.{module}" for name, module in attention.items()}
        if config.is_moe_layer(layer):
            names["ffn_gate_inp"] = "mlp.gate"
            names |= {f"ffn_{part}_shexp": f"mlp.shared_experts.{part}_proj" for part in ("gate", "up", "down")}
            for part in ("gate", "up", "down"):
                experts = [f"{ours}mlp.experts.{e}.{part}_proj.weight" for e in range(config.n_routed_experts)]
                found[f"{theirs}ffn_{part}_exps.weight"] = torch.stack([published[name] for name in experts])
            if config.topk_method == "noaux_tc":
                found[f"{theirs}exp_probs_b.bias"] = published[f"{ours}mlp.gate.e_score_correction_bias"]
        else:
            names |= {f"ffn_{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")}
        found |= {f"{theirs}{name}.weight": published[f"{ours}{module}.weight"] for name, module in names.items()}
        up = published[f"{ours}self_attn.kv_b_proj.weight"].view(config.num_attention_heads, -1, config.kv_lora_rank)
        found[f"{theirs}attn_k_b.weight"] = up[:, : config.qk_nope_head_dim].transpose(1, 2)
        found[f"{theirs}attn_v_b.weight"] = up[:, config.qk_nope_head_dim :]
    return found


def values_of(reader):
    """Name -> fp32 values, and name -> type."""
    kinds = {tensor.name: tensor.tensor_type for tensor in reader.tensors}
    values = {}
    for tensor in reader.tensors:
        flat = gguf.dequantize(tensor.data, tensor.tensor_type)
        values[tensor.name] = torch.from_numpy(np.array(flat)).reshape(tensor.shape.tolist()[::-1])
    return values, kinds


def keys_of(reader):
    return {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"tie_word_embeddings": True, "num_nextn_predict_layers": 0},
        {"n_routed_experts": None},
        {"q_lora_rank": 24, "n_group": 4, "topk_group": 2, "rope_scaling": YARN},
        SOFTMAX,
    ],
    ids=str,
)
def test_every_tensor_is_there_and_nothing_else(exported, overrides):
    model, said, reader = exported(ladder(2, vocab_size=64, **overrides))
    values, kinds = values_of(reader)
    expected = expected_tensors(model)
    assert values.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(values[name], value), name
        assert kinds[name] == gguf.GGMLQuantizationType.F32
    assert said.tensors == len(expected)
    assert said.parameters == sum(value.numel() for value in expected.values())
    assert said.size == said.path.stat().st_size
    assert any("prediction module" in note for note in said.notes) == bool(model.config.num_nextn_predict_layers)


def test_bf16(exported):
    model, _, reader = exported(ladder(2, vocab_size=64), weight_type="bf16")
    values, kinds = values_of(reader)
    for name, value in expected_tensors(model).items():
        whole = value.ndim == 1 or "ffn_gate_inp" in name
        assert kinds[name].name == ("F32" if whole else "BF16"), name
        assert torch.equal(values[name], value if whole else value.bfloat16().float()), name
    assert keys_of(reader)["general.file_type"] == 32


def test_q8_0(exported):
    """Every value within half a step of its block of 32, whose largest is 127 steps; a step is kept in fp16."""
    model, said, reader = exported(ladder(2, vocab_size=64), weight_type="q8_0")  # keys of 16 numbers a head
    values, kinds = values_of(reader)
    odd = []
    for name, value in expected_tensors(model).items():
        if value.ndim == 1 or "ffn_gate_inp" in name:
            assert torch.equal(values[name], value)
        elif value.shape[-1] % 32:
            odd.append(name)
            assert kinds[name].name == "BF16"
            assert torch.equal(values[name], value.bfloat16().float())
        else:
            assert kinds[name].name == "Q8_0", name
            blocks, error = value.unflatten(-1, (-1, 32)), (values[name] - value).unflatten(-1, (-1, 32))
            allowed = blocks.abs().amax(-1) * (0.5 / 127 + 2**-11)
            assert (error.abs().amax(-1) <= allowed).all(), name
            assert error.abs().max() > 0
    assert odd
    [note] = [note for note in said.notes if "kept in bf16" in note]
    assert note.startswith(f"{len(odd)} tensors with rows of 16 are kept in bf16")


def test_keys_of_a_network_like_v3(exported):
    config = ladder(
        2, vocab_size=64, num_hidden_layers=3, n_group=4, topk_group=2, q_lora_rank=24, routed_scaling_factor=2.5,
        rope_scaling=YARN, n_shared_experts=2,
    )  # fmt: skip
    _, said, reader = exported(config, name="whale")
    found = keys_of(reader)
    expected = {
        "general.architecture": "deepseek2",
        "general.name": "whale",
        "general.file_type": 0,
        "general.quantization_version": 2,
        "deepseek2.block_count": 3,
        "deepseek2.context_length": 1024,
        "deepseek2.embedding_length": 64,
        "deepseek2.feed_forward_length": 192,
        "deepseek2.vocab_size": 64,
        "deepseek2.leading_dense_block_count": 1,
        "deepseek2.attention.head_count": 2,
        "deepseek2.attention.head_count_kv": 1,
        "deepseek2.attention.q_lora_rank": 24,
        "deepseek2.attention.kv_lora_rank": 32,
        "deepseek2.attention.key_length": 48,
        "deepseek2.attention.value_length": 32,
        "deepseek2.attention.key_length_mla": 32,
        "deepseek2.attention.value_length_mla": 32,
        "deepseek2.attention.layer_norm_rms_epsilon": 1e-6,
        "deepseek2.rope.dimension_count": 16,
        "deepseek2.rope.freq_base": 10000.0,
        "deepseek2.rope.scaling.type": "yarn",
        "deepseek2.rope.scaling.factor": 8.0,
        "deepseek2.rope.scaling.original_context_length": 64,
        "deepseek2.rope.scaling.yarn_log_multiplier": 0.0707,
        "deepseek2.expert_feed_forward_length": 32,
        "deepseek2.expert_shared_count": 2,
        "deepseek2.expert_count": 8,
        "deepseek2.expert_used_count": 2,
        "deepseek2.expert_gating_func": 2,
        "deepseek2.expert_weights_norm": True,
        "deepseek2.expert_weights_scale": 2.5,
        "deepseek2.expert_group_count": 4,
        "deepseek2.expert_group_used_count": 2,
        "tokenizer.ggml.model": "none",
    }
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == (pytest.approx(value) if isinstance(value, float) else value), key
    assert any("token ids, not text" in note for note in said.notes)


def test_keys_that_depend_on_the_gate():
    def of(**overrides):
        return network_keys(ladder(2, **overrides))

    assert of()["deepseek2.attention.q_lora_rank"] == 0
    assert of()["deepseek2.rope.scaling.type"] == "none"
    assert "deepseek2.expert_group_count" not in of(n_group=2, topk_group=2)  # no group is ever left out
    assert of(n_routed_experts=None)["deepseek2.leading_dense_block_count"] == 2
    assert "deepseek2.expert_count" not in of(n_routed_experts=None)
    assert of(num_experts_per_tok=1)["deepseek2.expert_weights_norm"] is False  # one weight is never normalised
    v2 = of(**SOFTMAX, routed_scaling_factor=16.0)
    assert (v2["deepseek2.expert_gating_func"], v2["deepseek2.expert_weights_scale"]) == (1, 16.0)
    normed = of(**SOFTMAX | {"norm_topk_prob": True}, routed_scaling_factor=16.0)
    assert normed["deepseek2.expert_weights_scale"] == 1.0  # V2 scales or normalises, not both


def test_published_shapes_can_be_described():
    assert network_keys(preset("deepseek-r1"))["deepseek2.expert_group_count"] == 8
    for name in ("deepseek-v2-lite", "moonlight-16b-a3b", "kimi-k2"):
        assert network_keys(preset(name))["deepseek2.attention.kv_lora_rank"] == 512


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (preset("deepseek-v2"), "topk_method is 'group_limited_greedy'"),
        (ladder(2, moe_layer_freq=2), "moe_layer_freq is 2"),
        (ladder(26, q_lora_rank=64), "num_hidden_layers is 26"),
        (ladder(2, rope_scaling=YARN.model_copy(update={"mscale": 1.0})), "mscale and mscale_all_dim differ"),
        (
            ladder(2, rope_scaling=YarnScaling(factor=8, original_max_position_embeddings=64)),
            "mscale and mscale_all_dim",
        ),
        (ladder(2, rope_scaling=YARN.model_copy(update={"beta_fast": 4})), "beta_fast and beta_slow are not 32 and 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_llama_cpp_cannot_run_is_refused_by_name(config: ModelConfig, named):
    with pytest.raises(CheckpointError, match=r"llama\.cpp would compute another network") as caught:
        network_keys(config)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_refused_network_leaves_the_old_file(tmp_path, build):
    save_model(build(ladder(2, vocab_size=64, moe_layer_freq=2)), tmp_path / "model")
    (tmp_path / "out.gguf").write_text("old")
    with pytest.raises(CheckpointError):
        write_gguf(tmp_path / "model", tmp_path / "out.gguf")
    assert (tmp_path / "out.gguf").read_text() == "old"


def test_a_failure_in_the_middle_leaves_the_old_file_and_nothing_else(tmp_path, tiny, monkeypatch):
    save_model(tiny, tmp_path / "model")
    out = tmp_path / "files" / "out.gguf"
    out.parent.mkdir()
    out.write_text("old")
    read = StoredWeights.published

    def fails_late(self, name):
        if "layers.2" in name:
            raise OSError("the disk went away")
        return read(self, name)

    monkeypatch.setattr(StoredWeights, "published", fails_late)
    with pytest.raises(OSError, match="went away"):
        write_gguf(tmp_path / "model", out)
    assert [path.name for path in out.parent.iterdir()] == ["out.gguf"]
    assert out.read_text() == "old"


def test_progress_ends_at_the_whole(tmp_path, tiny):
    save_model(tiny, tmp_path / "model")
    seen = []
    write_gguf(tmp_path / "model", tmp_path / "out.gguf", on_progress=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == seen[-1][1] > 0


def test_a_large_eps_is_mentioned(exported):
    _, said, _ = exported(ladder(2, vocab_size=64, rms_norm_eps=1e-5))
    assert any("rms_norm_eps 1e-05" in note for note in said.notes)


def test_out_is_a_folder(tmp_path, tiny):
    save_model(tiny, tmp_path / "model")
    with pytest.raises(CheckpointError, match="is a folder; name the file"):
        write_gguf(tmp_path / "model", tmp_path)


def test_without_the_package(tmp_path, tiny, monkeypatch):
    save_model(tiny, tmp_path / "model")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(CheckpointError, match=r"pip install 'ziphius\[gguf\]'"):
        write_gguf(tmp_path / "model", tmp_path / "out.gguf")
