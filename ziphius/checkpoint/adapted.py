"""A model with an adapter, on the memory of the model without."""

from __future__ import annotations

from pathlib import Path

import torch

from ziphius.checkpoint.adapter import Adapter
from ziphius.checkpoint.errors import CheckpointError
from ziphius.checkpoint.names import published_places
from ziphius.disk.memory import free_gib
from ziphius.ledger.model import ADAPTER_CONFIG, adapter_base
from ziphius.model.transformer import Transformer
from ziphius.model.twin import twin


@torch.no_grad()
def with_adapter(model: Transformer, base: Path, folder: Path) -> tuple[Transformer, int]:
    """`model`, which was loaded from `base`, with the adapter in `folder`; and the bytes that it does not share.

    Raises CheckpointError for an adapter of another model, ValueError where a CPU's memory does not hold the tensors
    that the adapter changes.
    """
    if not (folder / ADAPTER_CONFIG).exists():
        raise CheckpointError(f"{folder} is no adapter: it has no {ADAPTER_CONFIG}")
    sits_on = adapter_base(folder)
    if sits_on is None or sits_on.resolve() != base.resolve():
        raise CheckpointError(f"{folder} is an adapter of {sits_on} and not of {base}; serve that model")
    adapter = Adapter.read(folder)
    state = model.state_dict()
    places = published_places(state, model.config)
    if unknown := [name for name in adapter.factors if f"{name}.weight" not in places]:
        raise CheckpointError(f"{folder} updates {unknown[0]}, which {base} does not have; copy the adapter again")
    own = {places[f"{name}.weight"].name for name in adapter.factors}
    own_bytes = sum(state[name].nbytes for name in own)
    if state["model.norm.weight"].device.type == "cpu" and own_bytes / 2**30 > free_gib():
        raise ValueError(
            f"the adapter {folder} takes {own_bytes / 2**30:.2f} GiB for the matrices that it changes, and "
            f"{free_gib():.2f} GiB are free; serve fewer adapters"
        )
    adapted = twin(model, own)
    theirs = adapted.state_dict()
    for name, factors in adapter.factors.items():
        place = places[f"{name}.weight"]
        part = theirs[place.name][place.at]
        part.copy_(part.float() + factors.delta().to(part.device))
    return adapted, own_bytes
