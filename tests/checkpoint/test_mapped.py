"""Folders opened for sampling: mapped where they lie, once, in their own number format."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.engine.test_forward import in_chunks, needs_kernels
from tests.model.variants import FAMILIES, network, v3
from ziphius.checkpoint import CheckpointError, load_model, mapped, save_model
from ziphius.checkpoint.device import load_on
from ziphius.checkpoint.mapped import map_model
from ziphius.model.config import ModelConfig
from ziphius.model.packed import PackedLinear
from ziphius.model.pieces import ExpertList
from ziphius.ops.matrix import tensors_of

pytestmark = needs_kernels  # without them a CPU takes load_model's network
CPU = torch.device("cpu")


def matrices(model) -> list[torch.Tensor]:
    """All values of a network in pieces that are no scales."""
    lists = [x for x in model.modules() if isinstance(x, ExpertList)]
    experts = [tensors_of(matrix)[0] for x in lists for matrix in x.gate + x.up + x.down]
    return [*model.parameters(), *(x.values for x in model.modules() if isinstance(x, PackedLinear)), *experts]


def in_map_of(folder: Path, tensor: torch.Tensor) -> bool:
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(str(folder / "model.safetensors")):
            first, last = (int(number, 16) for number in line.split()[0].split("-"))
            if first <= tensor.data_ptr() < last:
                return True
    return False


def fp8_folder(folder: Path, **overrides: object) -> Path:
    shape = {"num_nextn_predict_layers": 1, "moe_intermediate_size": 136, "q_lora_rank": 144}
    save_model(network(v3(**shape | overrides)), folder, dtype=torch.bfloat16, in_fp8=True)
    return folder


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what is mapped")
@pytest.mark.parametrize("name", ["V3, grouped", "Qwen2.5", "Qwen3, experts"])
def test_tensors_lie_where_the_file_has_them(tmp_path, name):
    model = network(FAMILIES[name])
    save_model(model, tmp_path)
    found = load_on(tmp_path, CPU)
    assert all(in_map_of(tmp_path, tensor) for tensor in matrices(found))
    expected, _ = in_chunks(model)
    for a, b in zip(expected, in_chunks(found)[0], strict=True):
        assert torch.equal(a, b)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what is mapped")
def test_fp8_stays_fp8(tmp_path):
    found = load_on(fp8_folder(tmp_path), CPU)
    in_fp8 = [x for x in matrices(found) if x.dtype == torch.float8_e4m3fn]
    assert all(in_map_of(tmp_path, x) for x in in_fp8)
    stored = load_file(tmp_path / "model.safetensors")
    folded = [name for name in stored if "kv_b_proj.weight" in name and "scale" not in name]
    assert len(in_fp8) == sum(x.dtype == torch.float8_e4m3fn for x in stored.values()) - len(folded)
    assert found.model.layers[0].self_attn.kv_b_proj.weight.dtype == torch.bfloat16
    expected, _ = in_chunks(load_model(tmp_path))
    for a, b in zip(expected, in_chunks(found)[0], strict=True):
        torch.testing.assert_close(b, a, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("stored_as", [torch.float8_e8m0fnu, torch.uint8])
def test_scales_that_are_powers_of_two(tmp_path, stored_as):
    path = fp8_folder(tmp_path) / "model.safetensors"
    tensors = load_file(path)
    scales = {name: x.to(torch.float8_e8m0fnu) for name, x in tensors.items() if name.endswith("scale_inv")}
    save_file(tensors | {name: x.view(stored_as) for name, x in scales.items()}, path)
    found = load_on(tmp_path, CPU)
    save_file(tensors | {name: x.float() for name, x in scales.items()}, path)
    for a, b in zip(in_chunks(load_on(tmp_path, CPU))[0], in_chunks(found)[0], strict=True):
        assert torch.equal(a, b)


def test_numbers_asked_for(tmp_path):
    fp8_folder(tmp_path / "fp8")
    save_model(network(v3()), tmp_path / "fp32")
    dtypes = lambda folder, weights: {str(x.dtype)[6:] for x in matrices(load_on(tmp_path / folder, CPU, weights))}
    assert dtypes("fp8", "auto") == dtypes("fp8", "fp8") == dtypes("fp32", "fp8") == {"float8_e4m3fn", "bfloat16"}
    assert dtypes("fp8", "fp32") == dtypes("fp32", "auto") == {"float32"}
    assert dtypes("fp8", "int8") == {"int8", "bfloat16"}
    config = tmp_path / "fp8" / "config.json"
    described = json.loads(config.read_text())
    described["quantization_config"]["weight_block_size"] = [256, 256]  # one scale a matrix here, as far as shapes tell
    config.write_text(json.dumps(described))
    with pytest.raises(CheckpointError, match="has shape"):
        load_on(tmp_path / "fp8", CPU)


@pytest.mark.parametrize("bits", [0x7F, 0xFF])
def test_what_is_no_number_is_refused(tmp_path, bits):
    path = fp8_folder(tmp_path) / "model.safetensors"
    tensors = load_file(path)
    name = "model.layers.1.mlp.experts.2.up_proj.weight"
    tensors[name].view(torch.uint8)[3, 5] = bits
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=rf"{name} has values that are not numbers"):
        load_on(tmp_path, CPU)


def test_a_network_larger_than_memory_answers(tmp_path, monkeypatch):
    fp8_folder(tmp_path)
    expected = in_chunks(load_on(tmp_path, CPU))[0]
    monkeypatch.setattr(mapped, "free_gib", lambda: 1e-6)
    with pytest.warns(UserWarning, match="experts are read from disk as tokens choose them"):
        found = in_chunks(load_on(tmp_path, CPU))[0]
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


_PEAK = """
import sys, torch
from pathlib import Path
from ziphius.checkpoint.device import load_on
def resident(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(key))
load_on(sys.argv[1], torch.device("cpu"))  # what the first use of anything takes
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = resident("VmRSS")
model = load_on(sys.argv[2], torch.device("cpu"))
print(resident("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what is resident")
def test_loading_peaks_at_the_folders_size(tmp_path):
    """All pages that the process holds count, its own and those of the file's map alike."""
    small = fp8_folder(tmp_path / "small")
    wide: ModelConfig = v3(hidden_size=640, moe_intermediate_size=384, n_routed_experts=16, vocab_size=512)
    big = tmp_path / "big"
    save_model(network(wide), big, dtype=torch.bfloat16, in_fp8=True)
    size = (big / "model.safetensors").stat().st_size
    done = subprocess.run([sys.executable, "-c", _PEAK, small, big], capture_output=True, text=True, check=True)
    assert 0.9 * size < int(done.stdout) < 1.1 * size


def test_map_keeps_what_a_later_file_replaces(tmp_path):
    model = network(v3())
    save_model(model, tmp_path)
    found = map_model(tmp_path, torch.float32)
    save_model(network(v3(), seed=1), tmp_path)
    assert torch.equal(found.lm_head.weight, model.lm_head.weight)
