"""One step of the network over a latent cache.

N tokens of a step, D model.
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
