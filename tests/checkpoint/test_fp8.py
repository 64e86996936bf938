"""Folders in block-wise FP8, as V3 and R1 are published."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ziphius.checkpoint import CheckpointError, load_model, save_model
from ziphius.checkpoint.fp8 import dequantise, weight_block
from ziphius.model.presets import ladder


def quantise(weight, block):
    """E4M3 values and the scale of each block: its largest magnitude becomes 448."""
    rows, columns = (-(-size // step) for size, step in zip(weight.shape, block, strict=True))
    scale = torch.empty(rows, columns)
    value = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
    for i in range(rows):
        for j in range(columns):
            part = slice(i * block[0], (i + 1) * block[0]), slice(j * block[1], (j + 1) * block[1])
            scale[i, j] = weight[part].abs().max() / 448
            value[part] = (weight[part] / scale[i, j]).to(torch.float8_e4m3fn)
    return value, scale


@pytest.mark.parametrize(("shape", "block"), [((256, 384), (128, 128)), ((200, 130), (128, 128)), ((5, 7), (4, 2))])
def test_dequantise(shape, block):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator) * torch.logspace(-3, 2, shape[0]).unsqueeze(1)
    value, scale = quantise(weight, block)
    got = dequantise(value, scale, block)
    assert got.dtype == torch.float32
    largest = scale.repeat_interleave(block[0], 0)[: shape[0]].repeat_interleave(block[1], 1)[:, : shape[1]] * 448
    # half a step of three mantissa bits, or of the smallest subnormal, 2^-9
    assert torch.all((got - weight).abs() <= torch.maximum(weight.abs() / 16, largest / 448 * 2**-10) * 1.0001)


@pytest.fixture
def published(tmp_path, build):
    """A folder as DeepSeek publishes them: layers' matrices in FP8, but for gate, eh_proj and what is outside."""
    model = build(ladder(5, vocab_size=64, num_hidden_layers=2, n_routed_experts=4))
    save_model(model, tmp_path, dtype=torch.bfloat16)
    stored = load_file(tmp_path / "model.safetensors")
    for name in list(stored):
        if name.endswith("proj.weight") and "eh_proj" not in name:
            stored[name], stored[f"{name}_scale_inv"] = quantise(stored[name].float(), (128, 128))
    path = tmp_path / "config.json"
    quantization = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
    }
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": quantization}))
    save_file(stored, tmp_path / "model.safetensors")
    return tmp_path, model, stored


def test_folder_loads_dequantised(published):
    folder, model, stored = published
    loaded = load_model(folder)
    for name, tensor in model.state_dict().items():
        got = loaded.state_dict()[name]
        torch.testing.assert_close(got, tensor, rtol=1 / 16 + 1 / 256, atol=0.003, msg=name)
    exact = dequantise(
        *(stored[f"model.layers.1.mlp.experts.3.up_proj.weight{end}"] for end in ("", "_scale_inv")), (128, 128)
    )
    half = exact.shape[0]
    assert torch.equal(loaded.model.layers[1].mlp.experts.gate_up_proj[3, half:], exact)


def test_and_saves_without_its_quantisation(published, tmp_path):
    loaded = load_model(published[0], dtype=torch.bfloat16)
    save_model(loaded, tmp_path / "again")
    again = load_model(tmp_path / "again", dtype=torch.bfloat16)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), again.parameters(), strict=True))


def test_missing_scales(published):
    folder, _, stored = published
    del stored["model.layers.0.self_attn.o_proj.weight_scale_inv"]
    save_file(stored, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"o_proj\.weight is FP8 and its scales, .*_scale_inv, are missing"):
        load_model(folder)


def test_scales_of_another_block(published):
    folder, _, stored = published
    stored["model.layers.0.self_attn.o_proj.weight_scale_inv"] = torch.ones(7, 7)
    save_file(stored, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"o_proj\.weight_scale_inv has shape \[7, 7\]"):
        load_model(folder)


def test_block_of_the_config():
    assert weight_block(Path("c"), None) == (128, 128)
    assert weight_block(Path("c"), {"quant_method": "fp8", "weight_block_size": [64, 32]}) == (64, 32)
    with pytest.raises(CheckpointError, match="'compressed-tensors'"):
        weight_block(Path("c"), {"quant_method": "compressed-tensors"})
