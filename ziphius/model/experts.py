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
        valid_N = None if valid_BT is None else valid_BT.reshape(-1)
        self.loads.append(ops.expert_loads(indices_NK, scores_NE.shape[1], valid_N))
        self.balance_losses.append(ops.sequence_balance_loss(scores_NE, indices_NK, shape, valid_BT))


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
        normalise = config.norm_topk_prob and config.num_experts_per_tok > 1
        scaled = not (normalise and config.model_type == "deepseek_v2")  # V2's code does one or the other
        grouped = config.topk_method != "greedy"
        return ops.route(
            logits_NE,
            self.e_score_correction_bias if config.topk_method == "noaux_tc" else None,
            config.num_experts_per_tok,
            config.n_group if grouped else 1,
            config.topk_group if grouped else 1,
            config.scoring_func,
            normalise,
            config.routed_scaling_factor if scaled else 1.0,
        )


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
