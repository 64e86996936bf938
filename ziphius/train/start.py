"""The network that training starts from."""

from __future__ import annotations

import torch

from ziphius.model.config import ModelConfig
from ziphius.model.transformer import Transformer
from ziphius.train.place import Place


def new_model(config: ModelConfig, seed: int, place: Place) -> Transformer:
    """Random weights in fp32 on the device of `place`: drawn on the processor, so that a seed is the same anywhere."""
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(seed))
    model.to(place.device)
    if config.tie_word_embeddings:  # not on every device does `to` keep together what two modules share
        model.lm_head.weight = model.model.embed_tokens.weight
    return model
