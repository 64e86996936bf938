"""Causal attention over expanded keys and values, and the latent form around it, with packed samples kept apart.

B batch, T time, H heads, G key/value heads, K query/key head, N its no-position part, R its rope part, V value head,
X = N + V.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ziphius.ops.backend import backend_for, compute_dtype, current_backend
from ziphius.ops.native import attention as native
from ziphius.ops.rope import apply_rope, apply_rope_reference

# Below this length the plain products beat the flash kernel on a CPU, whose backward is the slower part
# (bench/train.py prints both).
_CPU_FLASH_LENGTH = 512

# Up to these sizes the native kernel beats both torch forms on one core; the buffers of wider heads leave its caches.
_NATIVE_LENGTH, _NATIVE_HEAD = 4096, 128


def latent_attention(
    q_BTHK: Tensor,
    kv_BTHX: Tensor,
    k_rope_BTR: Tensor,
    cos: Tensor,
    sin: Tensor,
    scale: float,
    segments_BT: Tensor | None = None,
) -> Tensor:
    """Rotate the queries' rope part (the last R of K) and the shared key, then attend causally -> [B, T, H, V].

    `kv_BTHX` holds each head's no-position key and its value; cos, sin [B or 1, T, R/2]. With `segments_BT`, the
    samples' numbers in packed rows, a token sees earlier tokens of its own sample only.
    Source: V3 §2.1.1, equations 1–10.
    """
    dtype = compute_dtype(q_BTHK)
    q, kv, k_rope = q_BTHK.to(dtype), kv_BTHX.to(dtype), k_rope_BTR.to(dtype)
    name = backend_for(q, kv, k_rope)
    if name == "native" and (current_backend() == "native" or _is_small(q, kv)):
        return native.LatentAttention.apply(q, kv, k_rope, cos, sin, scale, segments_BT)
    reference = name == "reference"
    rope = apply_rope_reference if reference else apply_rope
    attention = causal_attention_reference if reference else causal_attention
    R = k_rope.shape[-1]
    q_nope, q_rope = q.split([q.shape[-1] - R, R], dim=-1)
    k_nope, v = kv.split([q.shape[-1] - R, kv.shape[-1] - q.shape[-1] + R], dim=-1)
    k_rope = rope(k_rope, cos, sin).unsqueeze(2).expand(-1, -1, q.shape[2], -1)
    q = torch.cat([q_nope, rope(q_rope, cos.unsqueeze(2), sin.unsqueeze(2))], dim=-1)
    return attention(q, torch.cat([k_nope, k_rope], dim=-1), v, scale, segments_BT)


def _is_small(q: Tensor, kv: Tensor) -> bool:
    return q.shape[1] <= _NATIVE_LENGTH and max(q.shape[-1], kv.shape[-1]) <= _NATIVE_HEAD


def causal_attention(
    q_BTHK: Tensor, k_BTGK: Tensor, v_BTGV: Tensor, scale: float, segments_BT: Tensor | None = None
) -> Tensor:
    """softmax(q·kᵀ·scale + causal mask)·v -> [B, T, H, V].

    Where there are fewer key/value heads than heads, H/G neighbouring heads share one (grouped queries, Ainslie et al.
    2023, arXiv 2305.13245). With `segments_BT`, the samples' numbers in packed rows (a sample is a run of one number),
    a token sees earlier tokens of its own sample only; on a card that costs what the samples cost, without a T×T mask.
    """
    name = backend_for(q_BTHK, k_BTGK, v_BTGV)
    if name == "reference":
        return causal_attention_reference(q_BTHK, k_BTGK, v_BTGV, scale, segments_BT)
    if name == "triton" and segments_BT is not None:
        from ziphius.ops.triton.segments import segment_attention

        return segment_attention(q_BTHK, k_BTGK, v_BTGV, segments_BT, scale)
    if q_BTHK.is_cpu and (q_BTHK.dtype == torch.bfloat16 or q_BTHK.shape[1] < _CPU_FLASH_LENGTH):
        return _matrix_products(q_BTHK, k_BTGK, v_BTGV, scale, segments_BT)
    q, k, v = (x.transpose(1, 2) for x in (q_BTHK, k_BTGK, v_BTGV))
    mask = None if segments_BT is None else segment_mask(segments_BT, q.dtype).unsqueeze(1)
    V, missing = v.shape[-1], k.shape[-1] - v.shape[-1]
    if q.is_cuda and q.dtype == torch.bfloat16 and missing > 0:  # torch's flash kernel wants heads of one width
        v = F.pad(v, (0, missing))
    grouped = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, scale=scale, enable_gqa=grouped)
    return out[..., :V].transpose(1, 2)


def causal_attention_reference(
    q_BTHK: Tensor, k_BTGK: Tensor, v_BTGV: Tensor, scale: float, segments_BT: Tensor | None = None
) -> Tensor:
    k_BTHK, v_BTHV = _each_head(q_BTHK, k_BTGK, v_BTGV)
    scores = torch.einsum("bthk,bshk->bhts", q_BTHK.float(), k_BTHK.float()) * scale
    mask = causal_mask(q_BTHK.shape[1], scores) if segments_BT is None else segment_mask(segments_BT).unsqueeze(1)
    weights = torch.softmax(scores + mask, dim=-1)
    return torch.einsum("bhts,bshv->bthv", weights, v_BTHV.float()).to(v_BTHV.dtype)


def _each_head(q_BTHK: Tensor, *shared: Tensor) -> list[Tensor]:
    """Keys and values [B, T, G, ·] repeated for the heads that share them: [B, T, H, ·]."""
    repeats = q_BTHK.shape[2] // shared[0].shape[2]
    return [x if repeats == 1 else x.repeat_interleave(repeats, dim=2) for x in shared]


def causal_mask(length: int, like: Tensor) -> Tensor:
    """Additive causal mask [T, T] in the dtype and on the device of `like`."""
    blocked = torch.full((length, length), float("-inf"), dtype=like.dtype, device=like.device)
    return blocked.triu_(1)


def segment_mask(segments_BT: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Additive mask [B, T, T]: a token sees earlier tokens of its own sample only.

    `segments_BT` numbers the samples of each packed row (−1 on padding, which sees the padding before it).
    """
    length = segments_BT.shape[1]
    same = segments_BT.unsqueeze(2) == segments_BT.unsqueeze(1)
    causal = torch.ones(length, length, dtype=torch.bool, device=segments_BT.device).tril_()
    blocked = torch.zeros(same.shape, dtype=dtype, device=segments_BT.device)
    return blocked.masked_fill_(~(same & causal), float("-inf"))


def _matrix_products(
    q_BTHK: Tensor, k_BTGK: Tensor, v_BTGV: Tensor, scale: float, segments_BT: Tensor | None
) -> Tensor:
    """Two batched products around a softmax."""
    B, T, H, _ = q_BTHK.shape
    k_BTHK, v_BTHV = _each_head(q_BTHK, k_BTGK, v_BTGV)
    q, k, v = (x.transpose(1, 2).reshape(B * H, T, -1) for x in (q_BTHK, k_BTHK, v_BTHV))
    if segments_BT is None:
        scores = torch.baddbmm(causal_mask(T, q).expand(B * H, T, T), q, k.transpose(1, 2), alpha=scale)
    else:
        scores = torch.bmm(q * scale, k.transpose(1, 2)).view(B, H, T, T)
        scores = (scores + segment_mask(segments_BT, q.dtype).unsqueeze(1)).view(B * H, T, T)
    out = torch.bmm(torch.softmax(scores, dim=-1), v)
    return out.view(B, H, T, -1).transpose(1, 2)
