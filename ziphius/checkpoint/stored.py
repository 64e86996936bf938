"""The weights of a folder where they lie: matched with the network of its config.json, read when asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from ziphius.checkpoint import fp8
from ziphius.checkpoint.adapter import Adapter
from ziphius.checkpoint.errors import CheckpointError
from ziphius.checkpoint.names import Part, layer_of, published_places, shared_copies
from ziphius.checkpoint.shards import ShardReader
from ziphius.ledger.model import ADAPTER_CONFIG
from ziphius.model.config import ModelConfig
from ziphius.model.transformer import Transformer
from ziphius.ops.fp8 import BLOCK, Fp8Matrix

E4M3 = torch.float8_e4m3fn


@contextmanager
def open_weights(folder: Path, config: ModelConfig) -> Iterator[StoredWeights]:
    """The weights in `folder` of the network `config`, open for reading; of an adapter, those of its base with it.

    Raises CheckpointError naming the tensor or file that is missing, not expected, or of another shape; all of that
    is checked before the first value is read.
    """
    block = fp8.weight_block(folder / "config.json", config.extra.get("quantization_config"))
    adapter = Adapter.read(folder) if (folder / ADAPTER_CONFIG).exists() else None
    with ShardReader(folder if adapter is None else adapter.base) as reader:
        yield StoredWeights(reader, config, block, adapter)


class StoredWeights:
    """`places` maps what the files hold, in their order, to where it lies in our state dict.

    `config` is the network that the files hold: without prediction modules where config.json promises some and the
    folder has none, with those that are there where config.json does not say so. `state` is its state dict without
    values (on the meta device); tensors that repeat another are left out.
    """

    def __init__(
        self, reader: ShardReader, config: ModelConfig, block: tuple[int, int], adapter: Adapter | None = None
    ) -> None:
        config = config.model_copy(update={"num_nextn_predict_layers": _modules(reader, config)})
        self.reader, self.config, self.block, self.adapter = reader, config, block, adapter
        with torch.device("meta"):
            state = Transformer(config).state_dict()
        self.state = {name: tensor for name, tensor in state.items() if name not in shared_copies(config)}
        self.places = _match(reader, self.state, config, block)
        self._published = published_places(self.state, config)
        if adapter is not None:
            _must_sit(adapter, self._published, self.state)

    def value(self, name: str) -> Tensor:
        """The stored tensor `name`; one in FP8, or with an adapter's update, comes back in fp32."""
        value = self._stored(name)
        if self.adapter is None:
            return value
        if name in self._published:
            return self.adapter.merged(name, value)
        whole = value.to(torch.float32, copy=True)  # a layer's experts, stacked
        for published, part in self._published.items():
            if part.name == name:
                whole[part.at] = self.adapter.merged(published, whole[part.at])
        return whole

    def _stored(self, name: str) -> Tensor:
        tensor = self.reader.tensor(name)
        return fp8.dequantise(tensor, self._scales(name), self.block) if tensor.dtype == E4M3 else tensor

    def matrix(self, name: str) -> Tensor | Fp8Matrix:
        """The stored tensor `name` in the file's map; one in FP8 as it lies, which takes blocks of 128 × 128. What an
        adapter updates is no longer what lies there: as `value`."""
        tensor = self.reader.tensor(name)
        if tensor.dtype != E4M3 or (self.adapter is not None and name.removesuffix(".weight") in self.adapter.factors):
            return self.value(name)
        return Fp8Matrix(tensor, self._scales(name))

    @property
    def fp8_lies_ready(self) -> bool:
        """Whether there are matrices in FP8, in the blocks that `Fp8Matrix` has."""
        return self.block == (BLOCK, BLOCK) and any(name + fp8.SCALE_SUFFIX in self.reader for name in self.places)

    def _scales(self, name: str) -> Tensor:
        if name + fp8.SCALE_SUFFIX not in self.reader:
            raise CheckpointError(
                f"{self.reader.folder}: {name} is FP8 and its scales, {name + fp8.SCALE_SUFFIX}, are missing"
            )
        return fp8.scales(self.reader.tensor(name + fp8.SCALE_SUFFIX))

    def published(self, name: str) -> Tensor:
        """The published tensor `name`, wherever the folder keeps it; one in FP8 comes back in fp32."""
        if name in self.places:
            return self.value(name)
        part = self._published[name]  # the folder holds a layer's experts stacked
        value = self.reader.tensor(part.name, part.at)
        return value if self.adapter is None else self.adapter.merged(name, value)


def _must_sit(adapter: Adapter, places: Mapping[str, Part], state: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError where an adapter is of another network than its base."""
    for name, factors in adapter.factors.items():
        place = places.get(f"{name}.weight")
        shape = None if place is None else tuple(state[place.name][place.at].shape)
        if shape != (len(factors.B), factors.A.shape[1]):
            there = "no such matrix" if shape is None else f"one of shape {list(shape)}"
            raise CheckpointError(
                f"the adapter updates {name} of shape {[len(factors.B), factors.A.shape[1]]}, and {adapter.base} has "
                f"{there}; give the adapter's own base in {ADAPTER_CONFIG}"
            )


def _modules(reader: ShardReader, config: ModelConfig) -> int:
    """How many prediction modules the network of the files has."""
    layers = {layer_of(name) or 0 for name in reader if name.endswith(".eh_proj.weight")}
    found = sum(layer >= config.num_hidden_layers for layer in layers)
    promised = config.num_nextn_predict_layers
    return promised if found and promised else found


def _match(
    reader: ShardReader, state: Mapping[str, Tensor], config: ModelConfig, block: tuple[int, int]
) -> dict[str, Part]:
    """Stored name -> place, in the order of the files, once nothing is missing, left over, or of another shape.

    Beside the published names a folder may hold a layer's experts stacked under our name, as transformers keeps them.
    """
    published = published_places(state, config)
    copies = shared_copies(config)
    found: dict[str, Part] = {}
    unexpected = []
    for name in reader:
        place = published.get(name) or (Part(name) if name in state else None)
        if place is not None:
            found[name] = place
        elif not (name in copies or name.endswith("rotary_emb.inv_freq") or _is_scale(reader, name)):
            unexpected.append(name)
    whole = {name for name in found if name not in published}
    missing = [name for name, place in published.items() if name not in found and place.name not in whole]
    if missing:
        raise CheckpointError(f"{reader.folder} lacks {_first(missing)}; config.json describes a network that has it")
    if unexpected:
        raise CheckpointError(
            f"{reader.folder}/{reader.file(unexpected[0])} holds {_first(unexpected)}, which the network of "
            "config.json does not have"
        )
    for name, place in found.items():
        _expect(reader, name, tuple(state[place.name][place.at].shape))
        if name + fp8.SCALE_SUFFIX in reader:
            rows, columns = reader.shape(name)
            _expect(reader, name + fp8.SCALE_SUFFIX, (-(-rows // block[0]), -(-columns // block[1])))
    return found


def _expect(reader: ShardReader, name: str, shape: tuple[int, ...]) -> None:
    got = reader.shape(name)
    if got != shape:
        raise CheckpointError(
            f"{reader.folder}/{reader.file(name)}: {name} has shape {list(got)}, config.json expects {list(shape)}"
        )


def _is_scale(reader: ShardReader, name: str) -> bool:
    return name.endswith(fp8.SCALE_SUFFIX) and name.removesuffix(fp8.SCALE_SUFFIX) in reader


def _first(names: Iterable[str]) -> str:
    first, *rest = names
    return f"{first} (and {len(rest)} more)" if rest else first
