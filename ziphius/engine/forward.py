"""One step of the network over a latent cache: every pass of the engine goes through here.

N tokens of a step, D model, W vocabulary.
"""

from __future__ import annotations

from torch import Tensor

from ziphius.engine.cache import LatentMemory, StepCache
from ziphius.model.transformer import Transformer
from ziphius.ops.paged import Placement


def step_hidden(model: Transformer, tokens_N: Tensor, placement: Placement, memory: LatentMemory) -> Tensor:
    """Final hidden states [N, D] of a step's tokens, whose entries join the cache."""
    positions_1N = placement.positions_N.unsqueeze(0)
    return model.hidden(tokens_N.unsqueeze(0), positions_1N, cache=StepCache(memory, placement))[0]


def draft_hidden(
    model: Transformer, depth: int, hidden_ND: Tensor, tokens_N: Tensor, placement: Placement, memory: LatentMemory
) -> Tensor:
    """States [N, D] of prediction module `depth` (from 1) for hidden states and the tokens that follow them.

    Entries of the module's layer join the cache at the hidden states' positions. Source: V3 equations 21–22.
    """
    cos, sin = model.rope(placement.positions_N.unsqueeze(0), len(tokens_N))
    embedded = model.model.embed_tokens(tokens_N).unsqueeze(0)
    return model.mtp[depth - 1](hidden_ND.unsqueeze(0), embedded, cos, sin, cache=StepCache(memory, placement))[0]


def next_logits(model: Transformer, hidden_ND: Tensor) -> Tensor:
    """fp32 logits [N, W] of the token behind each hidden state."""
    return model.lm_head(hidden_ND).float()


def is_batch_invariant(model: Transformer, memory: LatentMemory) -> bool:
    """Whether a token's results are the same bits in any company. The matrix library promises no such thing."""
    return False
