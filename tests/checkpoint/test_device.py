import pytest
import torch

from tests.model.variants import network, v3
from ziphius.checkpoint.device import load_on, pick_device
from ziphius.checkpoint.errors import CheckpointError
from ziphius.checkpoint.folder import save_model


@pytest.mark.parametrize(("gpus", "expected"), [(0, "cpu"), (2, "cuda")])
def test_auto_takes_a_gpu_where_there_is_one(monkeypatch, gpus, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    assert pick_device("auto") == torch.device(expected)


def test_devices_by_name(monkeypatch):
    assert pick_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda") == torch.device("cuda")
    assert pick_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ValueError, match=r"device is 'cuda:2', but torch sees 2 GPUs here"):
        pick_device("cuda:2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match=r"but torch sees 0 GPUs here; use auto, or install a CUDA build"):
        pick_device("cuda")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "mps", ""])
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match=r"it must be auto, cpu, cuda or cuda:NUMBER"):
        pick_device(name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_keep_the_folders_format_or_take_the_one_asked_for(tmp_path, dtype):
    save_model(network(v3()), tmp_path, dtype=dtype)
    cpu = torch.device("cpu")
    assert load_on(tmp_path, cpu).lm_head.weight.dtype == dtype
    assert load_on(tmp_path, cpu, "fp32").lm_head.weight.dtype == torch.float32
    assert load_on(tmp_path, cpu, "bf16").lm_head.weight.dtype == torch.bfloat16
    small = load_on(tmp_path, cpu, "int8")
    assert (small.lm_head.values.dtype, small.model.embed_tokens.weight.dtype) == (torch.int8, torch.bfloat16)
    with pytest.raises(ValueError, match="'int8' are for the CPU"):
        load_on(tmp_path, torch.device("cuda"), "int8")
    with pytest.raises(CheckpointError, match="opened for sampling"):
        save_model(small, tmp_path)
