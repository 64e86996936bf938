import pytest
import torch

from tests.model.variants import network, v3
from ziphius.checkpoint.device import load_on, pick_device, working_dtype
from ziphius.checkpoint.folder import load_config, save_model


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
def test_a_gpu_keeps_the_folders_format(tmp_path, dtype):
    save_model(network(v3()), tmp_path, dtype=dtype)
    config = load_config(tmp_path)
    assert working_dtype(config, torch.device("cuda")) == dtype
    assert load_on(tmp_path, torch.device("cpu")).lm_head.weight.dtype == torch.float32
