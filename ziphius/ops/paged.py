"""Attention on a paged latent cache: the decoding form of latent attention, for any mix of prompts and answers.

N tokens of a step over all sequences, B sequences, M blocks of a sequence's table, S slots of the memory, H heads,
C latent, R rope part, X = C + R.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ziphius.ops.backend import backend_for, current_backend

_ROUND = 32  # visible columns are padded to a multiple: few shapes reach the matrix library

# The Triton kernel reads a token's whole prefix for that token. A prompt's tokens share most of theirs, which the
# products of the torch form read once for all; drafts behind an answer's token are few enough to find it in the cache.
_FEW = 8
_WIDEST_RANK = {torch.bfloat16: 1024, torch.float32: 256}  # what a program of the kernel has registers for


@dataclass
class Placement:
    """Where the tokens of one step stand. A sequence's tokens lie side by side, in order.

    `slots_N` is where each token's entry is stored: `tables_BM[row, position // block_size] · block_size + position %
    block_size`. `rows_N` names its line of `tables_BM` (both int32), `positions_N` (int64) its place in the sequence.
    `most` is the largest number of tokens of one sequence, 0 where only the device could tell.
    """

    rows_N: Tensor
    positions_N: Tensor
    slots_N: Tensor
    tables_BM: Tensor
    block_size: int
    most: int = 0

    @classmethod
    def of(cls, rows_N: Tensor, positions_N: Tensor, tables_BM: Tensor, block_size: int) -> Placement:
        """A placement whose slots follow from the tables."""
        blocks_N = tables_BM[rows_N.long(), positions_N // block_size].long()
        return cls(rows_N, positions_N, blocks_N * block_size + positions_N % block_size, tables_BM, block_size)

    def to(self, device: torch.device) -> Placement:
        """This one, made on the CPU, for `device`: with no more of the tables than its tokens need."""
        if device.type == "cpu":
            return self
        lines, rows_N = torch.unique(self.rows_N, return_inverse=True)
        tables_BM = self.tables_BM[lines, : int(self.positions_N.max()) // self.block_size + 1]
        rows_N, positions_N, slots_N = (x.to(device) for x in (rows_N.int(), self.positions_N, self.slots_N))
        return Placement(rows_N, positions_N, slots_N, tables_BM.to(device), self.block_size, self.most)


def paged_attention(q_NHX: Tensor, memory_SX: Tensor, placement: Placement, rank: int, scale: float) -> Tensor:
    """softmax(q·memoryᵀ·scale)·memory[:, :rank] over each query's own sequence up to its position -> [N, H, C].

    The memory must hold the step's own entries already. Source: V2 §2.1.2 (absorbed form).
    """
    if current_backend() == "reference":
        return paged_attention_reference(q_NHX, memory_SX, placement, rank, scale)
    if uses_kernel(q_NHX, memory_SX, rank, placement.most):
        from ziphius.ops.triton.paged import latent_decode

        return latent_decode(q_NHX, memory_SX, placement, rank, scale)
    _, counts_B = torch.unique_consecutive(placement.rows_N, return_counts=True)
    starts_B = counts_B.cumsum(0) - counts_B
    out = q_NHX.new_empty(*q_NHX.shape[:2], rank)
    for count in counts_B.unique().tolist():  # sequences that bring as many tokens form one batch
        first = starts_B[counts_B == count]
        tokens_BT = first.unsqueeze(1) + torch.arange(count, device=first.device)
        out[tokens_BT] = _attend(q_NHX[tokens_BT], memory_SX, placement, tokens_BT, rank, scale)
    return out


def uses_kernel(q: Tensor, memory: Tensor, rank: int, most: int) -> bool:
    """Whether the Triton kernel serves: on a GPU where no sequence brings more than a few tokens, as in decoding, or
    wherever the backend is 'triton' by name; not for ranks beyond 1,024 (fp32: 256). `most` as in `Placement`."""
    if backend_for(q, memory) != "triton" or rank > _WIDEST_RANK[memory.dtype]:
        return False
    return current_backend() == "triton" or 0 < most <= _FEW


def paged_attention_reference(
    q_NHX: Tensor, memory_SX: Tensor, placement: Placement, rank: int, scale: float
) -> Tensor:
    out = q_NHX.new_empty(*q_NHX.shape[:2], rank)
    for n, (row, position) in enumerate(zip(placement.rows_N.tolist(), placement.positions_N.tolist(), strict=True)):
        earlier = torch.arange(position + 1, device=q_NHX.device)
        blocks = placement.tables_BM[row, earlier // placement.block_size].long()
        seen_SX = memory_SX[blocks * placement.block_size + earlier % placement.block_size].float()
        weights_HS = torch.softmax(q_NHX[n].float() @ seen_SX.t() * scale, dim=-1)
        out[n] = (weights_HS @ seen_SX[:, :rank]).to(out.dtype)
    return out


def _attend(
    q_BTHX: Tensor, memory_SX: Tensor, placement: Placement, tokens_BT: Tensor, rank: int, scale: float
) -> Tensor:
    """[B, T, H, C] for sequences that bring T tokens each."""
    B, T, H, X = q_BTHX.shape
    positions_BT = placement.positions_N[tokens_BT]
    columns = -(-(int(positions_BT.max()) + 1) // _ROUND) * _ROUND
    column_S = torch.arange(columns, device=q_BTHX.device)
    blocks = (column_S // placement.block_size).clamp(max=placement.tables_BM.shape[1] - 1)
    rows_B = placement.rows_N[tokens_BT[:, 0]].long()
    slots_BS = placement.tables_BM[rows_B][:, blocks].long() * placement.block_size + column_S % placement.block_size
    seen_BSX = F.embedding(slots_BS, memory_SX)
    hidden_BTS = column_S > positions_BT.unsqueeze(2)
    scores = torch.bmm(q_BTHX.reshape(B, T * H, X), seen_BSX.transpose(1, 2)).view(B, T, H, columns)
    scores = (scores.float() * scale).masked_fill_(hidden_BTS.unsqueeze(2), float("-inf"))
    weights = torch.softmax(scores, dim=-1).to(q_BTHX.dtype).view(B, T * H, columns)
    return torch.bmm(weights, seen_BSX)[..., :rank].reshape(B, T, H, rank)
