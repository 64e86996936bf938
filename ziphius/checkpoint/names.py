"""The table between our tensors and the published ones.

Ours stack what is multiplied together: gate and up of an MLP lie in one [2F, D] matrix (gate first), the routed
experts of a layer in one [E, 2F, D] and one [E, D, F]; and prediction modules have a list of their own, `mtp.K`,
where the published folders count them as layers after the last. Every other name is the same.

E experts, D model, F expert hidden.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from torch import Tensor

from ziphius.model.config import ModelConfig


class Part(NamedTuple):
    """Where a published tensor lies: `at` these indices of the tensor `name` of our state dict."""

    name: str
    at: tuple[int | slice, ...] = ()


def published_places(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Part]:
    """Published name -> its place in `state`, in the order of `state`. Reads shapes only, so meta tensors do.

    Each element of `state` is covered once; `shared_copies` holds the published tensors that repeat another.
    """
    copies = shared_copies(config)
    return {
        published: place
        for name, tensor in state.items()
        if name not in copies
        for published, place in _parts(name, tensor, config.num_hidden_layers)
    }


def shared_copies(config: ModelConfig) -> dict[str, str]:
    """Published names that repeat a tensor of the network -> our name of the original.

    A prediction module shares embedding and head with the network (V3 §2.2), yet its published layer repeats both;
    a tied head repeats the embedding.
    """
    embedding = "model.embed_tokens.weight"
    head = embedding if config.tie_word_embeddings else "lm_head.weight"
    copies = {"lm_head.weight": embedding} if config.tie_word_embeddings else {}
    for module in range(config.num_nextn_predict_layers):
        prefix = f"model.layers.{config.num_hidden_layers + module}"
        copies |= {f"{prefix}.embed_tokens.weight": embedding, f"{prefix}.shared_head.head.weight": head}
    return copies


def layer_of(published: str) -> int | None:
    """The layer that a published tensor belongs to, None outside the layers."""
    found = re.match(r"model\.layers\.(\d+)\.", published)
    return None if found is None else int(found[1])


def _parts(name: str, tensor: Tensor, num_hidden_layers: int) -> Iterator[tuple[str, Part]]:
    target = _rename_mtp(name, num_hidden_layers)
    prefix, _, last = target.rpartition(".")
    if target.endswith("mlp.experts.gate_up_proj"):
        half = tensor.shape[1] // 2
        for expert in range(tensor.shape[0]):
            yield f"{prefix}.{expert}.gate_proj.weight", Part(name, (expert, slice(None, half)))
            yield f"{prefix}.{expert}.up_proj.weight", Part(name, (expert, slice(half, None)))
    elif target.endswith("mlp.experts.down_proj"):
        for expert in range(tensor.shape[0]):
            yield f"{prefix}.{expert}.down_proj.weight", Part(name, (expert,))
    elif target.endswith("gate_up_proj.weight"):
        half = tensor.shape[0] // 2
        stem = prefix.removesuffix("gate_up_proj")
        yield f"{stem}gate_proj.{last}", Part(name, (slice(None, half),))
        yield f"{stem}up_proj.{last}", Part(name, (slice(half, None),))
    else:
        yield target, Part(name)


def _rename_mtp(name: str, num_hidden_layers: int) -> str:
    """mtp.K.block.X -> model.layers.{L+K}.X, mtp.K.norm -> ….shared_head.norm, mtp.K.X -> ….X"""
    found = re.match(r"mtp\.(\d+)\.(.+)", name)
    if found is None:
        return name
    rest = found[2].removeprefix("block.")
    if rest == "norm.weight":
        rest = "shared_head.norm.weight"
    return f"model.layers.{num_hidden_layers + int(found[1])}.{rest}"
