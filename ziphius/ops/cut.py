"""Cuts of the tail.

S rows of a draw, W vocabulary, K likeliest tokens.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Cuts(NamedTuple):
    """What each row leaves out.

    First all but the `top_k` likeliest tokens (int64; 0: nothing), then all but the fewest that reach `top_p` of what
    is left (Holtzman et al. 2020, arXiv 1904.09751), then what is below `min_p` of the likeliest (Nguyen et al. 2024,
    arXiv 2407.01082). A token as likely as the last one kept stays too, so that the order of equals does not matter.
    """

    top_k_S: Tensor
    top_p_S: Tensor
    min_p_S: Tensor


def cut(logits_SW: Tensor, temperature_S: Tensor, cuts: Cuts) -> Tensor:
    """`logits_SW` without the tail of softmax(logits / temperature): −∞ where a token is cut."""
    top_k_S, top_p_S, min_p_S = cuts
    p_SW = torch.softmax(logits_SW / temperature_S.unsqueeze(1), dim=-1)
    W = p_SW.shape[1]
    top_k_S = torch.where(top_k_S > 0, top_k_S, W).clamp_(max=W)
    # a token below an equal share of what top-p leaves out is never kept by it: only the others need an order
    likely = (p_SW > ((1 - top_p_S) / W).unsqueeze(1)) | (top_p_S >= 1).unsqueeze(1)
    wanted_S = torch.where(top_p_S >= 1, 1, likely.sum(-1))
    K = int(torch.where(top_k_S < W, top_k_S, wanted_S).max())
    ordered_SK = p_SW.topk(max(K, 1), dim=-1).values
    rank_K = torch.arange(ordered_SK.shape[1], device=p_SW.device)
    ranked_SK = ordered_SK.masked_fill(rank_K >= top_k_S.unsqueeze(1), 0.0)
    sums_SK = ranked_SK.cumsum(-1)  # in order, so that columns for other rows' sake change no bit
    mass_S = torch.where(top_k_S < W, sums_SK[:, -1], p_SW.sum(-1))
    kept_SK = (sums_SK - ranked_SK < (top_p_S * mass_S).unsqueeze(1)) & (ranked_SK > 0)
    last_S = ordered_SK.gather(1, kept_SK.sum(-1, keepdim=True).sub_(1).clamp_(min=0)).squeeze(1)
    unlimited = (top_p_S >= 1) & (top_k_S >= W)
    floor_S = torch.where(unlimited, 0.0, last_S).maximum(min_p_S * ordered_SK[:, 0])
    return logits_SW.masked_fill(p_SW < floor_S.unsqueeze(1), -math.inf)
