"""A short name of a model's weights."""

from __future__ import annotations

from hashlib import blake2b

import torch
from torch import nn

_VALUES = 1024  # of each tensor: a step of training moves nearly all, so a few of each tell


@torch.no_grad()
def fingerprint(model: nn.Module) -> str:
    """`fp_` and 10 hex digits that change with the weights."""
    digest = blake2b(digest_size=5)
    for name, tensor in model.state_dict().items():
        values = tensor.reshape(-1)
        values = values[:: max(1, len(values) // _VALUES)].float().cpu().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}".encode() + values.numpy().tobytes())
    return f"fp_{digest.hexdigest()}"
