"""Dense SwiGLU layers, the gate, and the mixture of experts (V3 §2.1.2, equations 12–20; V2 §2.2).

B batch, T time, N tokens of a flattened batch, D model, E experts, K experts per token, F expert hidden.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ziphius import ops
from ziphius.model.config import ModelConfig
from ziphius.model.layers import Linear


class MLP(nn.Module):
    """down(silu(gate(x))·up(x)); gate and up lie in one matrix [2F, D], gate first."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_up_proj = Linear(hidden_size, 2 * intermediate_size)
        self.down_proj = Linear(intermediate_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(ops.swiglu(self.gate_up_proj(x)))


@dataclass
class RouterStats:
    """What the gates saw in one forward pass: tokens per expert, and the sequence-wise balance loss.

    `valid_BT` leaves padding out of both. Loads are int64 [E], one entry a layer, in the order of the layers.
    """

    valid_BT: Tensor | None = None
    loads: list[Tensor] = field(default_factory=list)
    balance_losses: list[Tensor] = field(default_factory=list)

    def observe(self, scores_NE: Tensor, indices_NK: Tensor, shape: tuple[int, int]) -> None:
        valid_BT = None if self.valid_BT is None else self.valid_BT[:, : shape[1]]  # MTP rows are shorter
        chosen = indices_NK if valid_BT is None else indices_NK[valid_BT.reshape(-1)]
        self.loads.append(torch.bincount(chosen.reshape(-1), minlength=scores_NE.shape[1]))
        self.balance_losses.append(sequence_balance_loss(scores_NE, indices_NK, shape, valid_BT))


def sequence_balance_loss(
    scores_NE: Tensor, indices_NK: Tensor, shape: tuple[int, int], valid_BT: Tensor | None = None
) -> Tensor:
    """Σ_i f_i·P_i per sequence, averaged over sequences (V3 equations 17–20, without the factor α).

    1 for a perfectly even gate, up to E/K when every token of a sequence goes to the same K experts.
    """
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


class Gate(nn.Module):
    """Chooses K experts per token and their weights, in fp32.

    `noaux_tc` (V3): sigmoid scores; selection adds `e_score_correction_bias`, which no gradient touches, and a group
    counts as much as its two best experts. `greedy`, `group_limited_greedy` (V2): softmax scores, a group counts as
    its best expert. Experts of the groups left out are never chosen.
    """

    e_score_correction_bias: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.n_routed_experts is not None
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        if config.topk_method == "noaux_tc":
            bias = torch.zeros(config.n_routed_experts, dtype=torch.float32)
            self.register_buffer("e_score_correction_bias", bias)

    def forward(self, x_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """-> scores [N, E], indices [N, K], weights [N, K]; scores and weights fp32."""
        config = self.config
        with torch.autocast(x_ND.device.type, enabled=False):
            logits_NE = x_ND.float() @ self.weight.float().t()
        scores_NE = logits_NE.sigmoid() if config.scoring_func == "sigmoid" else logits_NE.softmax(-1)
        indices_NK = self._select(scores_NE.detach())
        weights_NK = scores_NE.gather(1, indices_NK)
        if config.norm_topk_prob and config.num_experts_per_tok > 1:
            weights_NK = weights_NK / (weights_NK.sum(-1, keepdim=True) + 1e-20)
            if config.model_type == "deepseek_v2":  # V2's code scales only where it does not normalise
                return scores_NE, indices_NK, weights_NK
        return scores_NE, indices_NK, weights_NK * config.routed_scaling_factor

    def _select(self, scores_NE: Tensor) -> Tensor:
        config = self.config
        if config.topk_method == "noaux_tc":
            scores_NE = scores_NE + self.e_score_correction_bias
        if config.n_group > 1 and config.topk_method != "greedy":
            grouped = scores_NE.unflatten(1, (config.n_group, -1))
            if config.topk_method == "noaux_tc":
                rank = grouped.topk(2, dim=-1).values.sum(-1)
            else:
                rank = grouped.amax(-1)
            kept = torch.zeros_like(rank, dtype=torch.bool).scatter_(
                1, rank.topk(config.topk_group, dim=-1).indices, True
            )
            scores_NE = grouped.masked_fill(~kept.unsqueeze(-1), float("-inf")).flatten(1)
        return scores_NE.topk(config.num_experts_per_tok, dim=-1).indices


class Experts(nn.Module):
    """All routed experts, stacked: gate_up_proj [E, 2F, D] (gate first), down_proj [E, D, F]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        E, F, D = config.n_routed_experts or 0, config.moe_intermediate_size, config.hidden_size
        self.gate_up_proj = nn.Parameter(torch.empty(E, 2 * F, D))
        self.down_proj = nn.Parameter(torch.empty(E, D, F))

    def forward(self, x_ND: Tensor, indices_NK: Tensor, weights_NK: Tensor) -> Tensor:
        return ops.grouped_experts(x_ND, indices_NK, weights_NK, self.gate_up_proj, self.down_proj)


class MoE(nn.Module):
    """Shared experts for every token plus the routed ones (equation 12)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = Gate(config)
        self.experts = Experts(config)
        self.shared_experts = MLP(config.hidden_size, config.n_shared_experts * config.moe_intermediate_size)

    def forward(self, x_BTD: Tensor, stats: RouterStats | None = None) -> Tensor:
        x_ND = x_BTD.flatten(0, 1)
        scores_NE, indices_NK, weights_NK = self.gate(x_ND)
        if stats is not None:
            stats.observe(scores_NE, indices_NK, (x_BTD.shape[0], x_BTD.shape[1]))
        return self.shared_experts(x_BTD) + self.experts(x_ND, indices_NK, weights_NK).view_as(x_BTD)
