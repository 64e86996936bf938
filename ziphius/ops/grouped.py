"""Causal attention in which queries share keys and values (Ainslie et al. 2023, arXiv 2305.13245).

B batch, T time, H heads of queries, G heads of keys and values, K head dim.
"""

from __future__ import annotations

from torch import Tensor

from ziphius.ops.attention import causal_attention
from ziphius.ops.backend import backend_for, compute_dtype, current_backend
from ziphius.ops.native import gqa as native
from ziphius.ops.rope import apply_rope

# Up to these sizes the native kernel beats torch's forms, forward and backward together; wider heads leave its caches.
_NATIVE_LENGTH, _NATIVE_HEAD = 2048, 128


def grouped_attention(
    q_BTHK: Tensor,
    k_BTGK: Tensor,
    v_BTGK: Tensor,
    cos: Tensor,
    sin: Tensor,
    scale: float,
    segments_BT: Tensor | None = None,
) -> Tensor:
    """Rotate queries and keys, then attend causally -> [B, T, H, K]; queries h of H/G neighbours share a key.

    cos, sin [B or 1, T, K/2]. With `segments_BT`, the samples' numbers in packed rows, a token sees earlier tokens of
    its own sample only.
    """
    dtype = compute_dtype(q_BTHK)
    q, k, v = q_BTHK.to(dtype), k_BTGK.to(dtype), v_BTGK.to(dtype)
    if backend_for(q, k, v) == "native" and (current_backend() == "native" or _is_small(q)):
        return native.GroupedAttention.apply(q, k, v, cos, sin, scale, segments_BT)
    q, k = (apply_rope(x, cos.unsqueeze(2), sin.unsqueeze(2), interleaved=False) for x in (q, k))
    return causal_attention(q, k, v, scale, segments_BT)


def _is_small(q: Tensor) -> bool:
    return q.shape[1] <= _NATIVE_LENGTH and q.shape[-1] <= _NATIVE_HEAD
