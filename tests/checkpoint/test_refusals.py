"""What cannot be read is refused with one line that names the place."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from ziphius.checkpoint import CheckpointError, load_config, load_model, save_model


@pytest.fixture
def folder(tmp_path, tiny):
    save_model(tiny, tmp_path / "model", max_shard_bytes=10**9)
    return tmp_path / "model"


def refusal(folder, load=load_model) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    return message


def edit(folder, change):
    path = folder / "model.safetensors"
    stored = load_file(path)
    change(stored)
    save_file(stored, path)


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_not_a_folder(tmp_path):
    assert "is not a folder" in refusal(tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    assert "is not a folder" in refusal(tmp_path / "file")


def test_no_config(tmp_path):
    assert "holds no config.json" in refusal(tmp_path)


def test_config_that_is_no_json(folder):
    (folder / "config.json").write_text("{")
    assert "config.json" in refusal(folder)


@pytest.mark.parametrize("family", ["gemma3", "deepseek_v4", None])
def test_foreign_model_type(folder, family):
    edit_config(folder, model_type=family)
    message = refusal(folder, load_config)
    assert repr(family) in message
    assert "'deepseek_v2', 'deepseek_v3'" in message


def test_impossible_sizes(folder):
    edit_config(folder, n_group=3, hidden_size=-1)
    message = refusal(folder, load_config)
    assert "hidden_size" in message


def test_no_weights(folder):
    (folder / "model.safetensors").unlink()
    assert "neither model.safetensors nor model.safetensors.index.json" in refusal(folder)


def test_missing_tensor(folder):
    edit(
        folder, lambda stored: [stored.pop("model.layers.1.mlp.experts.2.up_proj.weight"), stored.pop("lm_head.weight")]
    )
    message = refusal(folder)
    assert "lacks model.layers.1.mlp.experts.2.up_proj.weight (and 1 more)" in message


def test_prediction_module_with_a_part_missing(folder):
    edit(folder, lambda stored: stored.pop("model.layers.3.hnorm.weight"))
    assert "lacks model.layers.3.hnorm.weight" in refusal(folder)


def test_unexpected_tensor(folder):
    edit(folder, lambda stored: stored.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(4)}))
    message = refusal(folder)
    assert "model.safetensors holds model.layers.0.self_attn.q_proj.bias" in message


def test_wrong_shape(folder):
    edit(folder, lambda stored: stored.update({"model.norm.weight": torch.zeros(5)}))
    message = refusal(folder)
    assert "model.norm.weight has shape [5], config.json expects [64]" in message


@pytest.mark.parametrize("keep", [0, 5, 1000, -100])
def test_truncated_file(folder, keep):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert "model.safetensors is cut short" in refusal(folder)


def test_missing_shard(folder, tiny):
    save_model(tiny, folder, max_shard_bytes=50_000)
    shard = sorted(folder.glob("model-00002*"))[0]
    shard.unlink()
    assert f"{shard} is missing, though model.safetensors.index.json lists it" in refusal(folder)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": 3}'])
def test_broken_index(folder, tiny, content):
    save_model(tiny, folder, max_shard_bytes=50_000)
    (folder / "model.safetensors.index.json").write_text(content)
    assert "is not a weight index" in refusal(folder)


def test_foreign_quantisation(folder):
    edit_config(folder, quantization_config={"quant_method": "gptq"})
    assert "'gptq'" in refusal(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", [[float("nan")], [float("inf"), float("-inf")]])
def test_weights_that_are_not_finite_are_named(folder, dtype, bad):
    name = "model.layers.1.self_attn.o_proj.weight"

    def spoil(stored):
        stored[name] = stored[name].to(dtype)
        stored[name].view(-1)[: len(bad)] = torch.tensor(bad, dtype=dtype)

    edit(folder, spoil)
    message = refusal(folder)
    count = load_file(folder / "model.safetensors")[name].numel()
    assert f"model.safetensors: {name} has {len(bad)} of {count:,} values that are not finite; take an" in message


def test_a_sum_too_large_for_its_type_is_not_taken_for_a_bad_value(folder):
    name = "model.layers.1.self_attn.o_proj.weight"
    edit(folder, lambda stored: stored[name].fill_(3e38))
    assert load_model(folder).state_dict()[name].isfinite().all()
