"""Where a folder's weights go, and in what number format they lie there."""

from __future__ import annotations

from pathlib import Path

import torch

from ziphius.checkpoint.folder import load_config, load_model
from ziphius.model.config import ModelConfig
from ziphius.model.formats import Weights
from ziphius.model.int8 import quantise
from ziphius.model.transformer import Transformer

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.bfloat16}


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


def load_on(folder: str | Path, device: torch.device, weights: Weights = "auto") -> Transformer:
    """The network of `folder` for sampling on `device`, its weights in FP32, BF16 or 8-bit integers.

    `auto` is the folder's own format (BF16 for FP8 and FP16). A CPU's matrix unit, where there is one, also rounds what
    it multiplies with the weights: to BF16 for those in BF16, to 16-bit integers for those in 8 bits. Raises ValueError
    for 8 bits on a GPU.
    """
    if weights == "int8" and device.type != "cpu":
        raise ValueError("weights 'int8' are for the CPU; on a GPU use bf16")
    model = load_model(folder, _DTYPES.get(weights) or stored_dtype(load_config(folder)), device)
    return quantise(model) if weights == "int8" else model


def stored_dtype(config: ModelConfig) -> torch.dtype:
    """BF16 where the folder's weights are in 16 or 8 bits, else FP32."""
    return _DTYPES[config.stored]
