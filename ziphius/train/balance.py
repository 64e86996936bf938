"""Auxiliary-loss-free load balancing (V3 §2.1.2; Wang et al. 2024, arXiv 2408.15664) and its gauge."""

from __future__ import annotations

import torch
from torch import Tensor

from ziphius.model.experts import Gate
from ziphius.model.transformer import Transformer


def gates(model: Transformer) -> list[Gate]:
    """The gates in the order in which `RouterStats` sees them: main stack first, then the MTP modules."""
    return [module for module in model.modules() if isinstance(module, Gate)]


@torch.no_grad()
def update_bias(gate: Gate, load_E: Tensor, gamma: float, mean_centred: bool) -> None:
    """b += γ·sign(mean load − load): busy experts become harder to choose, idle ones easier.

    `mean_centred` subtracts the mean of the signs, so that the biases keep their sum (Moonlight, arXiv 2502.16982).
    """
    sign = torch.sign(load_E.float().mean() - load_E.float())
    if mean_centred:
        sign -= sign.mean()
    gate.e_score_correction_bias += gamma * sign


def load_violation(loads_GE: Tensor) -> Tensor:
    """MaxVio: how far the busiest expert is above an even share, max load / mean load − 1 (arXiv 2408.15664), of the
    gate where it is worst; 0 where there is no gate. A number on the loads' device."""
    if not loads_GE.numel():
        return loads_GE.new_zeros((), dtype=torch.float32)
    loads = loads_GE.float()
    return (loads.amax(-1) / loads.mean(-1).clamp(min=1e-9) - 1).max()
