"""The few operations where time goes. Each has a plain reference, and faster backends tested against it.

`ops.backend("reference")` switches every operation to its reference inside a `with` block; `backend.py` lists the
backends.
"""

from ziphius.ops.attention import causal_attention, latent_attention
from ziphius.ops.backend import backend, current_backend
from ziphius.ops.draw import draw_tokens
from ziphius.ops.experts import grouped_experts
from ziphius.ops.grouped import grouped_attention
from ziphius.ops.loss import linear_cross_entropy
from ziphius.ops.norm import add_rms_norm, rms_norm
from ziphius.ops.rope import apply_rope
from ziphius.ops.router import route, sequence_balance_loss
from ziphius.ops.sorted_experts import expert_loads
from ziphius.ops.swiglu import swiglu

__all__ = [
    "add_rms_norm",
    "apply_rope",
    "backend",
    "causal_attention",
    "current_backend",
    "draw_tokens",
    "expert_loads",
    "grouped_attention",
    "grouped_experts",
    "latent_attention",
    "linear_cross_entropy",
    "rms_norm",
    "route",
    "sequence_balance_loss",
    "swiglu",
]
