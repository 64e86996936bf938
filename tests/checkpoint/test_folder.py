"""A network survives the way through a folder, whatever the shards, the dtype and what lay there before."""

import json
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ziphius.checkpoint import CheckpointError, load_config, load_model, save_model
from ziphius.model.presets import ladder


def same(left, right):
    a, b = left.state_dict(), right.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def metadata_of(path):
    with safe_open(path, "pt") as handle:
        return handle.metadata()


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"tie_word_embeddings": True},
        {"num_nextn_predict_layers": 0},
        {"num_nextn_predict_layers": 2},
        {"n_routed_experts": None},
        {"q_lora_rank": 24},
        {"moe_layer_freq": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("max_shard_bytes", [10**9, 40_000])
def test_round_trip(tmp_path, build, overrides, max_shard_bytes):
    model = build(ladder(2, vocab_size=64, **overrides))
    save_model(model, tmp_path / "model", max_shard_bytes)
    loaded = load_model(tmp_path / "model")
    assert same(model, loaded)
    assert loaded.config.model_dump() == model.config.model_dump()
    if model.config.tie_word_embeddings:
        assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    tokens = torch.arange(8).unsqueeze(0)
    assert torch.equal(model(tokens).logits, loaded(tokens).logits)


def test_single_file_and_its_neighbours(tmp_path, tiny):
    save_model(tiny, tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["config.json", "generation_config.json", "model.safetensors"]
    assert metadata_of(tmp_path / "model.safetensors") == {"format": "pt"}
    described = json.loads((tmp_path / "config.json").read_text())
    assert described["architectures"] == ["DeepseekV3ForCausalLM"]
    assert described["torch_dtype"] == "float32"
    sampling = json.loads((tmp_path / "generation_config.json").read_text())
    assert sampling == {"bos_token_id": 0, "eos_token_id": 1, "do_sample": True, "temperature": 0.6, "top_p": 0.95}


def test_shards_and_index(tmp_path, tiny):
    save_model(tiny, tmp_path, max_shard_bytes=50_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    count = len(files)
    assert count > 2
    assert files == [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    stored = {file: load_file(tmp_path / file) for file in files}
    for name, file in index["weight_map"].items():
        assert name in stored[file]
    sizes = [sum(x.nbytes for x in shard.values()) for shard in stored.values()]
    assert sum(sizes) == index["metadata"]["total_size"]
    assert max(sizes) <= 50_000
    copies = [name for name in index["weight_map"] if "shared_head.head" in name or "layers.3.embed_tokens" in name]
    assert len(copies) == 2


def test_bf16_keeps_the_selection_bias_in_fp32(tmp_path, tiny):
    bias = tiny.model.layers[1].mlp.gate.e_score_correction_bias
    save_model(tiny, tmp_path, dtype=torch.bfloat16)
    stored = load_file(tmp_path / "model.safetensors")
    assert stored["model.norm.weight"].dtype == torch.bfloat16
    assert stored["model.layers.1.mlp.gate.e_score_correction_bias"].dtype == torch.float32
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"
    loaded = load_model(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert torch.equal(loaded.model.layers[1].mlp.gate.e_score_correction_bias, bias)
    assert torch.equal(loaded.lm_head.weight, tiny.lm_head.weight.bfloat16())


def test_other_files_stay_and_old_weights_go(tmp_path, tiny, build):
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "step").write_text("7")
    save_model(tiny, tmp_path, max_shard_bytes=50_000)
    other = build(tiny.config, seed=1)
    save_model(other, tmp_path)
    assert sorted(os.listdir(tmp_path)) == [
        "config.json", "generation_config.json", "model.safetensors", "state", "tokenizer.json",
    ]  # fmt: skip
    assert same(load_model(tmp_path), other)
    save_model(tiny, tmp_path, max_shard_bytes=50_000)
    assert not (tmp_path / "model.safetensors").exists()
    assert same(load_model(tmp_path), tiny)


def test_own_generation_config(tmp_path, tiny):
    save_model(tiny, tmp_path, generation_config={"do_sample": False})
    assert json.loads((tmp_path / "generation_config.json").read_text()) == {"do_sample": False}


def test_what_described_the_old_folder_is_not_carried_over(tmp_path, build):
    config = ladder(2, vocab_size=64).model_copy(
        update={"extra": {"quantization_config": {"quant_method": "fp8"}, "auto_map": {"AutoModel": "x.Y"}, "mine": 1}}
    )
    save_model(build(config), tmp_path)
    described = json.loads((tmp_path / "config.json").read_text())
    assert "quantization_config" not in described
    assert "auto_map" not in described
    assert described["mine"] == 1


def test_prediction_modules_that_nobody_mentions_are_read(tmp_path, tiny):
    save_model(tiny, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["num_nextn_predict_layers"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = load_model(tmp_path)
    assert loaded.config.num_nextn_predict_layers == 1
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), tiny.parameters(), strict=True))


def test_prediction_modules_that_are_not_there(tmp_path, tiny):
    save_model(tiny, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    save_file({name: x for name, x in stored.items() if ".layers.3." not in name}, tmp_path / "model.safetensors")
    with pytest.warns(UserWarning, match="config.json counts 1: loaded without them"):
        loaded = load_model(tmp_path)
    assert len(loaded.mtp) == 0
    assert loaded.config.num_nextn_predict_layers == 0
    assert load_config(tmp_path).num_nextn_predict_layers == 1
    tokens = torch.arange(8).unsqueeze(0)
    assert torch.equal(tiny(tokens).logits, loaded(tokens).logits)


def test_copies_must_equal_their_originals(tmp_path, tiny):
    save_model(tiny, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    stored["model.layers.3.shared_head.head.weight"][0, 0] += 1
    save_file(stored, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"layers\.3\.shared_head\.head\.weight differs from lm_head\.weight"):
        load_model(tmp_path)


def test_a_folder_without_copies_or_with_old_rope_tables_loads(tmp_path, tiny):
    save_model(tiny, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    del stored["model.layers.3.shared_head.head.weight"], stored["model.layers.3.embed_tokens.weight"]
    stored["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    save_file(stored, tmp_path / "model.safetensors")
    assert same(load_model(tmp_path), tiny)


def test_stacked_experts_as_transformers_keeps_them(tmp_path, tiny):
    save_model(tiny, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    state = tiny.state_dict()
    for name in [n for n in stored if ".layers.1.mlp.experts." in n]:
        del stored[name]
    for name in ("gate_up_proj", "down_proj"):
        stored[f"model.layers.1.mlp.experts.{name}"] = state[f"model.layers.1.mlp.experts.{name}"]
    save_file(stored, tmp_path / "model.safetensors")
    assert same(load_model(tmp_path), tiny)
