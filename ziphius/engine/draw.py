"""Drawing tokens: cuts of the tail, and the draw itself.

S rows of a draw, W vocabulary, K likeliest tokens. What is as long as the vocabulary stays on the device; what is one
number a row is numpy on the host, where such small arithmetic costs a third.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def likeliest(x_SW: Tensor) -> np.ndarray:
    """The place of each row's greatest value [S], of equals the first."""
    if x_SW.device.type == "cpu":
        return x_SW.numpy().argmax(-1)  # many times faster than torch's
    return x_SW.argmax(-1).cpu().numpy()


def draw(p_SW: Tensor, u_S: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The token [S] on which the uniform number `u_S` falls, and its entry in the row [S]. Spends `p_SW`.

    Rows need not sum to one. The likeliest token comes first on the number line and the others follow in order: two
    similar distributions, met with the same number, then mostly give the same token.
    """
    best_S1 = torch.from_numpy(likeliest(p_SW)).to(p_SW.device).unsqueeze(1)
    first_S = pick(p_SW, best_S1)
    others_SW = p_SW.scatter_(1, best_S1, 0.0).cumsum(-1)
    mass_S = host(others_SW[:, -1])
    place_S = u_S * (first_S + mass_S) - first_S
    is_first_S = (place_S < 0) | (mass_S <= 0)
    # rounding must not reach a token behind the last with any mass
    within_S1 = torch.from_numpy(np.minimum(place_S, mass_S * np.float32(1 - 2**-20))).to(p_SW.device).unsqueeze(1)
    other_S1 = torch.searchsorted(others_SW, within_S1, right=True).clamp_(max=p_SW.shape[1] - 1)
    chosen_S = np.where(is_first_S, host(best_S1.squeeze(1)), host(other_S1.squeeze(1)))
    return chosen_S, np.where(is_first_S, first_S, pick(p_SW, other_S1))


def pick(x_SW: Tensor, place_S1: Tensor) -> np.ndarray:
    """Each row's entry at its place [S]."""
    return host(x_SW.gather(1, place_S1).squeeze(1))


def host(x: Tensor) -> np.ndarray:
    """On a CPU a view."""
    return x.cpu().numpy()


def cut(p_SW: Tensor, top_k_S: Tensor, top_p_S: Tensor, min_p_S: Tensor) -> Tensor:
    """`p_SW` without its tail: a copy whose cut tokens have no mass.

    First all but the `top_k_S` likeliest (0: none), then all but the fewest that reach `top_p_S` of what is left
    (Holtzman et al. 2020, arXiv 1904.09751), then what is below `min_p_S` of the likeliest (Nguyen et al. 2024,
    arXiv 2407.01082). A token as likely as the last one kept stays too, so that the order of equals does not matter.
    """
    W = p_SW.shape[1]
    top_k_S = torch.where(top_k_S > 0, top_k_S, W).clamp_(max=W)
    # a token below an equal share of what top-p leaves out is never kept by it: only the others need an order
    likely = (p_SW > ((1 - top_p_S) / W).unsqueeze(1)) | (top_p_S >= 1).unsqueeze(1)
    wanted_S = torch.where(top_p_S >= 1, 1, likely.sum(-1))
    K = int(torch.where(top_k_S < W, top_k_S, wanted_S).max())
    ordered_SK = p_SW.topk(max(K, 1), dim=-1).values
    rank_K = torch.arange(ordered_SK.shape[1], device=p_SW.device)
    ranked_SK = ordered_SK.masked_fill(rank_K >= top_k_S.unsqueeze(1), 0.0)
    mass_S = torch.where(top_k_S < W, ranked_SK.sum(-1), p_SW.sum(-1))
    before_SK = ranked_SK.cumsum(-1) - ranked_SK
    kept_SK = (before_SK < (top_p_S * mass_S).unsqueeze(1)) & (ranked_SK > 0)
    last_S = ordered_SK.gather(1, kept_SK.sum(-1, keepdim=True).sub_(1).clamp_(min=0)).squeeze(1)
    unlimited = (top_p_S >= 1) & (top_k_S >= W)
    floor_S = torch.where(unlimited, 0.0, last_S).maximum(min_p_S * ordered_SK[:, 0])
    return p_SW.masked_fill(p_SW < floor_S.unsqueeze(1), 0.0)
