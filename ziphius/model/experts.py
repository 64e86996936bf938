"""Dense SwiGLU layers, the gate, and the mixture of experts (V3 §2.1.2, equations 12–20; V2 §2.2).

B batch, T time, N tokens of a flattened batch, D model, E experts, K experts per token, F expert hidden.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ziphius import ops
from ziphius.model.config import Routing
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

    The rule is the config's `Routing`. Its selection bias is `e_score_correction_bias`, which no gradient touches.
    """

    e_score_correction_bias: Tensor

    def __init__(self, hidden_size: int, routing: Routing) -> None:
        super().__init__()
        self.routing = routing
        self.weight = nn.Parameter(torch.empty(routing.experts, hidden_size))
        if routing.selection_bias:
            self.register_buffer("e_score_correction_bias", torch.zeros(routing.experts, dtype=torch.float32))

    def forward(self, x_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """-> scores [N, E], indices [N, K], weights [N, K]; scores and weights fp32."""
        rule = self.routing
        with torch.autocast(x_ND.device.type, enabled=False):
            logits_NE = x_ND.float() @ self.weight.float().t()
        return ops.route(
            logits_NE,
            self.e_score_correction_bias if rule.selection_bias else None,
            rule.top_k,
            rule.groups,
            rule.kept_groups,
            rule.scoring,
            rule.normalise,
            rule.factor,
        )


class Experts(nn.Module):
    """All routed experts, stacked: gate_up_proj [E, 2F, D] (gate first), down_proj [E, D, F]."""

    def __init__(self, hidden_size: int, routing: Routing) -> None:
        super().__init__()
        E, F, D = routing.experts, routing.hidden, hidden_size
        self.gate_up_proj = nn.Parameter(torch.empty(E, 2 * F, D))
        self.down_proj = nn.Parameter(torch.empty(E, D, F))

    def forward(self, x_ND: Tensor, indices_NK: Tensor, weights_NK: Tensor) -> Tensor:
        return ops.grouped_experts(x_ND, indices_NK, weights_NK, self.gate_up_proj, self.down_proj)


class MoE(nn.Module):
    """The routed experts, and where there are any the shared ones, for every token (equation 12)."""

    def __init__(self, hidden_size: int, routing: Routing) -> None:
        super().__init__()
        self.gate = Gate(hidden_size, routing)
        self.experts = Experts(hidden_size, routing)
        self.shared_experts = MLP(hidden_size, routing.shared_hidden) if routing.shared_hidden else None

    def forward(self, x_BTD: Tensor, stats: RouterStats | None = None) -> Tensor:
        x_ND = x_BTD.flatten(0, 1)
        scores_NE, indices_NK, weights_NK = self.gate(x_ND)
        if stats is not None:
            stats.observe(scores_NE, indices_NK, (x_BTD.shape[0], x_BTD.shape[1]))
        routed = self.experts(x_ND, indices_NK, weights_NK).view_as(x_BTD)
        return routed if self.shared_experts is None else self.shared_experts(x_BTD) + routed
