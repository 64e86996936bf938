"""A second network over the tensors of a first."""

from __future__ import annotations

from collections.abc import Collection

import torch

from ziphius.model.transformer import Transformer


def twin(model: Transformer, own: Collection[str]) -> Transformer:
    """A network of the same config on the same memory, but for the tensors named `own`, of which it has copies.

    It is frozen. Adapted modules of `model` are plain ones in it.
    """
    with torch.device("meta"):
        second = Transformer(model.config)
    theirs = model.state_dict()
    state = {name: theirs[name].clone() if name in own else theirs[name] for name in second.state_dict()}
    second.load_state_dict(state, assign=True)
    if model.config.tie_word_embeddings:
        second.lm_head.weight = second.model.embed_tokens.weight
    return second.requires_grad_(False)
