"""From the hidden states of a step to the scores of the prompt tokens that follow them.

N tokens of a step, D model, S tokens to score, W vocabulary, K alternatives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ziphius.engine.scheduler import Piece
from ziphius.engine.scores import TokenScores

_NUMBERS_AT_ONCE = 2**25  # logits: 128 MiB in fp32


def score_prompts(logits: Callable[[Tensor], Tensor], hidden_ND: Tensor, plan: Sequence[Piece]) -> None:
    """Add what a step has read to the scores of the prompts that want them: log-probabilities at temperature 1.

    `logits` maps hidden states to fp32 [S, W], a slice at a time: those of a long prompt would fill the memory. A
    prompt whose numbers are not finite breaks off.
    """
    wanted: list[tuple[Piece, int]] = []
    rows: list[int] = []
    tokens: list[int] = []
    first = 0
    for piece in plan:
        sequence, end = piece.sequence, min(piece.start + piece.count, piece.sequence.prompt_length - 1)
        if sequence.scores is not None and piece.start < end and not sequence.scores.complete:
            wanted.append((piece, end - piece.start))
            rows += range(first, first + end - piece.start)
            tokens += sequence.tokens[piece.start + 1 : end + 1]
        first += piece.count
    if not wanted:
        return
    most = max(piece.sequence.scores.top for piece, _ in wanted if piece.sequence.scores is not None)
    found = _scores(logits, hidden_ND, rows, tokens, most)
    done = 0
    for piece, count in wanted:
        sequence, scores = piece.sequence, found.cut(done, done + count, most)
        done += count
        if not np.isfinite(scores.logprobs).all():
            sequence.break_off("the network gave no finite numbers")
        elif sequence.scores is not None:
            sequence.scores.put(piece.start + 1, scores)


def _scores(
    logits: Callable[[Tensor], Tensor], hidden_ND: Tensor, rows: Sequence[int], tokens: Sequence[int], top: int
) -> TokenScores:
    device = hidden_ND.device
    rows_S = torch.tensor(rows, device=device)
    tokens_S1 = torch.tensor(tokens, device=device).unsqueeze(1)
    parts: list[TokenScores] = []
    at_once = 1
    done = 0
    while done < len(rows):
        here = slice(done, done + at_once)
        logits_SW = logits(hidden_ND[rows_S[here]])
        norm_S1 = logits_SW.logsumexp(1, keepdim=True)
        best = logits_SW.topk(top, dim=1)
        parts.append(
            TokenScores(
                (logits_SW.gather(1, tokens_S1[here]) - norm_S1).squeeze(1).cpu().numpy(),
                best.indices.int().cpu().numpy(),
                (best.values - norm_S1).cpu().numpy(),
            )
        )
        done += at_once
        at_once = max(1, _NUMBERS_AT_ONCE // logits_SW.shape[1])
    return TokenScores(
        np.concatenate([part.logprobs for part in parts]),
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.values for part in parts]),
    )
