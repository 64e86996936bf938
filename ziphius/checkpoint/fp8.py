"""Weights kept as E4M3 with one scale per block (V3 §3.3.2), as in the published V3 and R1 folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from ziphius.checkpoint.errors import CheckpointError

SCALE_SUFFIX = "_scale_inv"


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
    """weight · scale of its block, fp32 [M, N]; `scale_inv` [⌈M/rows⌉, ⌈N/columns⌉] fp32."""
    rows, columns = weight_MN.shape
    spread = scale_inv.float().repeat_interleave(block[0], 0)[:rows].repeat_interleave(block[1], 1)[:, :columns]
    return weight_MN.float() * spread
