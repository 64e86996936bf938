"""One step of the network over a paged cache: every pass of the engine goes through here.

The native kernels serve where the model and the machine allow it, the network's own modules elsewhere.
N tokens of a step, D model, W vocabulary.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ziphius.engine.cache import PagedMemory, PlacedCache
from ziphius.engine.native import describe, matrix_of
from ziphius.model.mtp import MTPModule
from ziphius.model.transformer import Transformer
from ziphius.ops.backend import backend_for
from ziphius.ops.native import decoder as native
from ziphius.ops.placement import Placement

_decoders: WeakKeyDictionary[Transformer, tuple[list[Tensor], list[int], native.Decoder]] = WeakKeyDictionary()


def step_hidden(model: Transformer, tokens_N: Tensor, placement: Placement, memory: PagedMemory) -> Tensor:
    """Final hidden states [N, D] of a step's tokens, whose entries join the cache."""
    decoder = _decoder(model, memory)
    if decoder is None:
        positions_1N = placement.positions_N.unsqueeze(0)
        return model.hidden(tokens_N.unsqueeze(0), positions_1N, cache=PlacedCache(memory, placement))[0]
    x_ND = model.model.embed_tokens.weight[tokens_N].float()
    return decoder.run(x_ND, memory.data, placement, model.model.norm.weight, 0, model.config.num_hidden_layers)


def draft_hidden(
    model: Transformer, depth: int, hidden_ND: Tensor, tokens_N: Tensor, placement: Placement, memory: PagedMemory
) -> Tensor:
    """States [N, D] of prediction module `depth` (from 1) for hidden states and the tokens that follow them.

    Entries of the module's layer join the cache at the hidden states' positions. Source: V3 equations 21–22.
    """
    module = model.mtp[depth - 1]
    assert isinstance(module, MTPModule)
    embedded = model.model.embed_tokens(tokens_N)
    decoder = _decoder(model, memory)
    if decoder is None:
        cos, sin = model.rope(placement.positions_N.unsqueeze(0), len(tokens_N))
        cache = PlacedCache(memory, placement)
        return module(hidden_ND.unsqueeze(0), embedded.unsqueeze(0), cos, sin, cache=cache)[0]
    x_ND = module.join(hidden_ND.to(embedded.dtype), embedded).float().contiguous()
    layer = model.config.num_hidden_layers + depth - 1
    return decoder.run(x_ND, memory.data, placement, module.norm.weight, layer, 1)


def next_logits(model: Transformer, hidden_ND: Tensor) -> Tensor:
    """fp32 logits [N, W] of the token behind each hidden state."""
    if hidden_ND.dtype == torch.float32 and backend_for(hidden_ND, model.model.embed_tokens.weight) == "native":
        return native.linear(hidden_ND.contiguous(), matrix_of(model.lm_head))
    return model.lm_head(hidden_ND).float()


def is_batch_invariant(model: Transformer, memory: PagedMemory) -> bool:
    """Whether a token's results are the same bits in any company: the native step's are, a matrix library's are not."""
    return _decoder(model, memory) is not None


def _decoder(model: Transformer, memory: PagedMemory) -> native.Decoder | None:
    """The model's native decoder, described anew when a weight has moved. None where the torch path must serve."""
    if backend_for(memory.data, model.model.embed_tokens.weight) != "native":
        return None
    known = _decoders.get(model)
    if known is not None and known[1] == [weight.data_ptr() for weight in known[0]]:
        return known[2]
    if backend_for(*model.parameters()) != "native":
        return None
    decoder = describe(model)
    weights = [*model.parameters(), *model.buffers()]
    _decoders[model] = weights, [weight.data_ptr() for weight in weights], decoder
    return decoder
