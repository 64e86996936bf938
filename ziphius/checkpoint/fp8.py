"""Weights kept as E4M3 with one scale per block (V3 §3.3.2), as in the published V3 and R1 folders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ziphius.checkpoint.errors import CheckpointError
from ziphius.ops.fp8 import BLOCK, quantise_fp8, spread

SCALE_SUFFIX = "_scale_inv"
CONFIG = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]}


def weight_block(config_json: Path, quantization: dict[str, Any] | None) -> tuple[int, int]:
    """Rows and columns of a block, from the `quantization_config` of a config.json (128 × 128 where it has none).

    Raises CheckpointError for any quantisation but block-wise FP8.
    """
    quantization = quantization or {}
    method = quantization.get("quant_method", "fp8")
    if method != "fp8":
        raise CheckpointError(
            f"{config_json}: quantization_config says {method!r}; 'fp8' in blocks is read, or weights in BF16"
        )
    rows, columns = quantization.get("weight_block_size") or (128, 128)
    return rows, columns


def dequantise(weight_MN: Tensor, scale_inv: Tensor, block: tuple[int, int]) -> Tensor:
    """weight · scale of its block, fp32 [M, N]; `scale_inv` [⌈M/rows⌉, ⌈N/columns⌉] as `scales` gives it."""
    return spread(scale_inv, weight_MN.shape, block).mul_(weight_MN.float())


def scales(stored: Tensor) -> Tensor:
    """A copy in fp32: stored so, in BF16, or as powers of two (`ue8m0`: the exponent's bits alone, maybe as bytes)."""
    powers = stored.view(torch.float8_e8m0fnu) if stored.dtype == torch.uint8 else stored
    return powers.to(torch.float32, copy=True)


def is_kept_so(published: str) -> bool:
    """Whether published folders keep this tensor in FP8: the layers' matrices, but for gates and `eh_proj`."""
    return published.endswith(("proj.weight", "proj_with_mqa.weight")) and not published.endswith("eh_proj.weight")


def quantise(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published tensors as an FP8 folder has them: each matrix that `is_kept_so` in e4m3, its scales behind it."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if is_kept_so(name):
            matrix = quantise_fp8(tensor.detach().cpu())
            found |= {name: matrix.values, name + SCALE_SUFFIX: matrix.scale}
        else:
            found[name] = tensor
    return found
