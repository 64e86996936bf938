"""Attention on a paged cache: the decoding form of attention, for any mix of prompts and answers.

N tokens of a step over all sequences, B sequences, M blocks of a sequence's table, S slots of the memory, H heads of
queries, G heads of the cache, K key, V value, X the width of an entry.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ziphius.ops.backend import backend_for, current_backend
from ziphius.ops.placement import Layout, Placement

_ROUND = 32  # visible columns are padded to a multiple: few shapes reach the matrix library

# The Triton kernels read a token's whole prefix for that token. A prompt's tokens share most of theirs, which the
# products of the torch form read once for all; drafts behind an answer's token are few enough to find it in the cache.
_FEW = 8
_WIDEST = {torch.bfloat16: 1024, torch.float32: 256}  # what a program of the kernels has registers for


def paged_attention(q_NHK: Tensor, memory_SX: Tensor, placement: Placement, layout: Layout, scale: float) -> Tensor:
    """softmax(q·keysᵀ·scale)·values over each query's own sequence up to its position -> [N, H, V].

    Heads h·H/G … (h + 1)·H/G − 1 of the queries see head h of the entries. The memory must hold the step's own entries
    already. Source: V2 §2.1.2 (absorbed form) for latents; Ainslie et al. 2023 (arXiv 2305.13245) for shared heads.
    """
    if current_backend() == "reference":
        return paged_attention_reference(q_NHK, memory_SX, placement, layout, scale)
    if uses_kernel(q_NHK, memory_SX, layout, placement.most):
        return _with_kernel(q_NHK, memory_SX, placement, layout, scale)
    _, counts_B = torch.unique_consecutive(placement.rows_N, return_counts=True)
    starts_B = counts_B.cumsum(0) - counts_B
    out = q_NHK.new_empty(*q_NHK.shape[:2], layout.value)
    for count in counts_B.unique().tolist():  # sequences that bring as many tokens form one batch
        first = starts_B[counts_B == count]
        tokens_BT = first.unsqueeze(1) + torch.arange(count, device=first.device)
        out[tokens_BT] = _attend(q_NHK[tokens_BT], memory_SX, placement, tokens_BT, layout, scale)
    return out


def uses_kernel(q: Tensor, memory: Tensor, layout: Layout, most: int) -> bool:
    """Whether the Triton kernel serves: on a GPU where no sequence brings more than a few tokens, as in decoding, or
    wherever the backend is 'triton' by name; for values of up to 1,024 (fp32: 256). `most` as in `Placement`."""
    if backend_for(q, memory) != "triton" or layout.value > _WIDEST[memory.dtype]:
        return False
    return current_backend() == "triton" or 0 < most <= _FEW


def _with_kernel(q_NHK: Tensor, memory_SX: Tensor, placement: Placement, layout: Layout, scale: float) -> Tensor:
    if layout.heads == 1 and layout.value_start == 0:  # values are the fronts of the keys, which are read once
        from ziphius.ops.triton.paged import latent_decode

        return latent_decode(q_NHK, memory_SX, placement, layout.value, scale)
    from ziphius.ops.triton.grouped import grouped_decode

    return grouped_decode(q_NHK, memory_SX, placement, layout, scale)


def paged_attention_reference(
    q_NHK: Tensor, memory_SX: Tensor, placement: Placement, layout: Layout, scale: float
) -> Tensor:
    out = q_NHK.new_empty(*q_NHK.shape[:2], layout.value)
    for n, (row, position) in enumerate(zip(placement.rows_N.tolist(), placement.positions_N.tolist(), strict=True)):
        earlier = torch.arange(position + 1, device=q_NHK.device)
        blocks = placement.tables_BM[row, earlier // placement.block_size].long()
        seen_SX = memory_SX[blocks * placement.block_size + earlier % placement.block_size].float()
        keys_SGK, values_SGV = _keys_and_values(seen_SX, layout)
        q_GHK = q_NHK[n].float().unflatten(0, (layout.heads, -1))
        weights_GHS = torch.softmax(torch.einsum("ghk,sgk->ghs", q_GHK, keys_SGK) * scale, dim=-1)
        out[n] = torch.einsum("ghs,sgv->ghv", weights_GHS, values_SGV).flatten(0, 1).to(out.dtype)
    return out


def _keys_and_values(seen: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """Views [..., G, K] and [..., G, V] of entries [..., X]."""
    heads, key, value, start = layout.heads, layout.key, layout.value, layout.value_start
    keys, values = seen[..., : heads * key], seen[..., start : start + heads * value]
    return keys.unflatten(-1, (heads, key)), values.unflatten(-1, (heads, value))


def _attend(
    q_BTHK: Tensor, memory_SX: Tensor, placement: Placement, tokens_BT: Tensor, layout: Layout, scale: float
) -> Tensor:
    """[B, T, H, V] for sequences that bring T tokens each."""
    B, T, H, K = q_BTHK.shape
    positions_BT = placement.positions_N[tokens_BT]
    columns = -(-(int(positions_BT.max()) + 1) // _ROUND) * _ROUND
    column_S = torch.arange(columns, device=q_BTHK.device)
    blocks = (column_S // placement.block_size).clamp(max=placement.tables_BM.shape[1] - 1)
    rows_B = placement.rows_N[tokens_BT[:, 0]].long()
    slots_BS = placement.tables_BM[rows_B][:, blocks].long() * placement.block_size + column_S % placement.block_size
    seen = _keys_and_values(F.embedding(slots_BS, memory_SX), layout)
    keys_BGSK, values_BGSV = (x.transpose(1, 2) for x in seen)
    G = layout.heads
    q_BGLK = q_BTHK.view(B, T, G, H // G, K).transpose(1, 2).reshape(B, G, T * H // G, K)
    hidden_BTS = column_S > positions_BT.unsqueeze(2)
    scores = (q_BGLK @ keys_BGSK.transpose(2, 3)).view(B, G, T, H // G, columns)
    scores = (scores.float() * scale).masked_fill_(hidden_BTS.view(B, 1, T, 1, columns), float("-inf"))
    weights_BGLS = torch.softmax(scores, dim=-1).to(q_BTHK.dtype).view(B, G, T * H // G, columns)
    out = (weights_BGLS @ values_BGSV).view(B, G, T, H // G, layout.value)
    return out.transpose(1, 2).reshape(B, T, H, layout.value)
