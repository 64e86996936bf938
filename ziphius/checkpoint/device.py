"""Where a folder's weights go, and in what number format they lie there."""

from __future__ import annotations

from pathlib import Path

import torch

from ziphius.checkpoint.folder import load_config, load_model
from ziphius.checkpoint.mapped import map_model
from ziphius.model.config import ModelConfig
from ziphius.model.formats import Weights
from ziphius.model.packed import PackedLinear, quantise
from ziphius.model.transformer import Transformer
from ziphius.ops.backend import kernels_of_cpu

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.bfloat16, "fp8": torch.bfloat16}


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
    """The network of `folder` for sampling on `device`, its weights in FP32, BF16, 8-bit integers or FP8.

    `auto` is the folder's own format (BF16 for FP16, and for FP8 but on a CPU with the native kernels). There, and for
    FP8 anywhere, the network lies in pieces which are the folder's own map where nothing needs converting
    (`map_model`). FP8 is multiplied as it lies; a folder in another format is rounded to it. Without the native kernels
    each matrix in 8 bits is made dense for the time of its product.

    A CPU's matrix unit, where there is one, also rounds what it multiplies with the weights: to BF16 for those in BF16,
    to 16-bit integers for those in 8-bit ones. Raises ValueError for 8-bit integers on a GPU.
    """
    if weights == "int8" and device.type != "cpu":
        raise ValueError("weights 'int8' are for the CPU; on a GPU use bf16 or fp8")
    dtype = _DTYPES.get(weights) or stored_dtype(load_config(folder))
    native = device.type == "cpu" and kernels_of_cpu() == "native"
    if not native and weights in ("auto", "fp32", "bf16"):
        return load_model(folder, dtype, device)
    model = map_model(folder, dtype, device, keep_fp8=weights in ("auto", "fp8"))
    if weights == "int8" or (weights == "fp8" and not any(isinstance(x, PackedLinear) for x in model.modules())):
        return quantise(model, weights)
    return model


def load_stacked(folder: str | Path, device: torch.device, weights: Weights = "auto") -> Transformer:
    """As `load_on`, in FP32 or BF16 and with each tensor in memory of its own, for adapters to be added to."""
    return load_model(folder, _DTYPES.get(weights) or stored_dtype(load_config(folder)), device)


def stored_dtype(config: ModelConfig) -> torch.dtype:
    """BF16 where the folder's weights are in 16 or 8 bits, else FP32."""
    return _DTYPES[config.stored]
