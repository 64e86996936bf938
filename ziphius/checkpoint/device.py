"""Where a folder's weights go, and in what number format they lie there."""

from __future__ import annotations

from pathlib import Path

import torch

from ziphius.checkpoint.folder import load_config, load_model
from ziphius.model.config import ModelConfig
from ziphius.model.transformer import Transformer


def pick_device(name: str) -> torch.device:
    """The device called `name`: 'cpu', 'cuda', 'cuda:1', or 'auto' for a GPU where there is one and else the CPU.

    Raises ValueError for one that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or not (number.isdecimal() if ":" in name else True):
        raise ValueError(f"device is {name!r}; it must be auto, cpu, cuda or cuda:NUMBER")
    there = torch.cuda.device_count() if kind == "cuda" else 1
    if int(number or 0) >= there:
        raise ValueError(
            f"device is {name!r}, but torch sees {there} GPUs here; use auto, or install a CUDA build of it"
        )
    return torch.device(name)


def load_on(folder: str | Path, device: torch.device) -> Transformer:
    """`load_model` on `device`, in the format that it works best with (see `working_dtype`)."""
    return load_model(folder, working_dtype(load_config(folder), device), device)


def working_dtype(config: ModelConfig, device: torch.device) -> torch.dtype:
    """FP32 on a CPU. On a GPU the folder's own format, BF16 in place of FP8 and FP16."""
    stored = config.extra.get("dtype") or config.extra.get("torch_dtype")
    return torch.float32 if device.type == "cpu" or stored == "float32" else torch.bfloat16
