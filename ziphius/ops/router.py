"""The gate's choice of experts after its product, and the loss that keeps its loads even.

B batch, T time, N = B·T tokens, E experts in groups, K experts per token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ziphius.ops.backend import backend_for
from ziphius.ops.native import router as native


def route(
    logits_NE: Tensor,
    bias_E: Tensor | None,
    top_k: int,
    groups: int = 1,
    kept_groups: int = 1,
    scoring: str = "sigmoid",
    normalise: bool = True,
    factor: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """-> scores [N, E] (sigmoid or softmax of the logits), indices [N, K] best first, weights [N, K].

    The K best experts of the best groups are chosen. With a `bias` (V3's `noaux_tc`, §2.1.2, equation 16) selection
    sees score + bias and a group counts as its two best experts; without, a group counts as its best. The weights are
    the chosen scores alone, divided by their sum where `normalise` says so, times `factor`.
    Raises ValueError when the groups kept hold fewer than K experts, or a group has no second one to rank it by.
    """
    size = logits_NE.shape[1] // groups
    if top_k > size * kept_groups:
        raise ValueError(f"top_k ({top_k}) exceeds the {size * kept_groups} experts of the {kept_groups} groups kept")
    if groups > 1 and bias_E is not None and size < 2:
        raise ValueError("with a bias a group is ranked by its two best experts: it needs at least two")
    if backend_for(logits_NE) == "native" and logits_NE.dtype == torch.float32:
        sigmoid = scoring == "sigmoid"
        return native.Route.apply(logits_NE, bias_E, top_k, groups, kept_groups, sigmoid, normalise, factor)
    scores_NE = logits_NE.sigmoid() if scoring == "sigmoid" else logits_NE.softmax(-1)
    indices_NK = _select(scores_NE.detach(), bias_E, top_k, groups, kept_groups)
    weights_NK = scores_NE.gather(1, indices_NK)
    if normalise:
        weights_NK = weights_NK / (weights_NK.sum(-1, keepdim=True) + 1e-20)
    return scores_NE, indices_NK, weights_NK * factor


def _select(scores_NE: Tensor, bias_E: Tensor | None, top_k: int, groups: int, kept_groups: int) -> Tensor:
    if bias_E is not None:
        scores_NE = scores_NE + bias_E
    if groups > 1:
        grouped = scores_NE.unflatten(1, (groups, -1))
        rank = grouped.amax(-1) if bias_E is None else grouped.topk(2, dim=-1).values.sum(-1)
        best = rank.topk(kept_groups, dim=-1).indices
        kept = torch.zeros_like(rank, dtype=torch.bool).scatter_(1, best, True)
        scores_NE = grouped.masked_fill(~kept.unsqueeze(-1), float("-inf")).flatten(1)
    return scores_NE.topk(top_k, dim=-1).indices


def sequence_balance_loss(
    scores_NE: Tensor, indices_NK: Tensor, shape: tuple[int, int], valid_BT: Tensor | None = None
) -> Tensor:
    """Σ_i f_i·P_i per sequence, averaged over sequences (V3 equations 17–20, without the factor α).

    1 for a perfectly even gate, up to E/K when every token of a sequence goes to the same K experts.
    `valid_BT` (booleans) leaves padding out.
    """
    if backend_for(scores_NE) == "native" and scores_NE.dtype == torch.float32:
        return native.BalanceLoss.apply(scores_NE, indices_NK, shape, valid_BT)
    (B, T), E, K = shape, scores_NE.shape[1], indices_NK.shape[1]
    weight_BT = torch.ones(shape, device=scores_NE.device) if valid_BT is None else valid_BT.float()
    length_B1 = weight_BT.sum(1, keepdim=True).clamp(min=1)
    share_NE = scores_NE / scores_NE.sum(-1, keepdim=True)
    P_BE = (share_NE.view(B, T, E) * weight_BT.unsqueeze(2)).sum(1) / length_B1
    with torch.no_grad():
        ones = weight_BT.reshape(B, T, 1).expand(B, T, K).reshape(B, T * K)
        count_BE = torch.zeros(B, E, device=scores_NE.device).scatter_add_(1, indices_NK.view(B, T * K), ones)
        f_BE = count_BE * E / (K * length_B1)
    return (f_BE * P_BE).sum(1).mean()
