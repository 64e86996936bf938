"""A folder opened for sampling: the network's tensors are views of its files' map.

What need not change is never copied, so a folder takes its own size once, as pages that the kernel may drop and read
again; a network larger than memory answers, the experts that a token chose paged in.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from ziphius.checkpoint import fp8
from ziphius.checkpoint.errors import CheckpointError
from ziphius.checkpoint.folder import copies_must_equal, load_config, must_be_finite, without_modules
from ziphius.checkpoint.names import Part
from ziphius.checkpoint.stored import StoredWeights, open_weights
from ziphius.disk.memory import free_gib
from ziphius.model.packed import FOLDED, PackedLinear
from ziphius.model.pieces import ExpertList, GateUp, in_pieces
from ziphius.model.transformer import Transformer
from ziphius.ops.backend import kernels_of_cpu
from ziphius.ops.fp8 import Fp8Matrix
from ziphius.ops.matrix import Matrix
from ziphius.ops.native.decoder import will_be_scattered, will_be_used

_CHUNK = 1 << 20
_NAN = 0x7F  # of e4m3, which has no infinity; with the sign, 0xFF


def map_model(
    folder: str | Path, dtype: torch.dtype, device: torch.device | str = "cpu", keep_fp8: bool = False
) -> Transformer:
    """The network in `folder`, in pieces, its weights in `dtype` (`e_score_correction_bias` in fp32) on `device`.

    A tensor stored so is its place in the file, which must stay as it is (a file that replaces it does no harm); others
    are converted one by one. `keep_fp8` leaves matrices in blocks of 128 × 128 as they are.

    A folder that fits the memory that is free is read once from end to end, and a tensor with values that are not
    finite is refused. Of a larger one only what every token needs is looked at, with a warning: the engine takes no
    token from numbers that are not finite. Raises CheckpointError otherwise as `load_model`.
    """
    folder = Path(folder)
    config = load_config(folder)
    with open_weights(folder, config) as stored:
        if stored.config.num_nextn_predict_layers < config.num_nextn_predict_layers:
            warnings.warn(without_modules(folder, config), stacklevel=2)
        native = torch.device(device).type == "cpu" and kernels_of_cpu() == "native"
        paged = native and not _fits(stored.reader.files)
        if not paged:
            _read_ahead(stored.reader.files)
        with torch.device("meta"):
            model = in_pieces(Transformer(stored.config))
        for name, value in _values(stored, dtype, keep_fp8 and stored.fp8_lies_ready, paged):
            _put(model, stored.places[name], _on(value, device))
        for module in model.modules():
            if isinstance(module, ExpertList):
                module.paged = paged
        if stored.config.tie_word_embeddings:
            model.lm_head.weight = model.model.embed_tokens.weight
        copies_must_equal(stored, model.state_dict())
    return model


def _values(stored: StoredWeights, dtype: torch.dtype, keep_fp8: bool, paged: bool) -> Iterator[tuple[str, Matrix]]:
    """Every tensor by its stored name, in the order of the files."""
    for name, place in stored.places.items():
        if paged:
            where = stored.reader.tensor(name)
            will_be_scattered(where)
            if ".experts." not in name:
                will_be_used(where)
        # A cut between gate and up would tear blocks.
        as_it_lies = keep_fp8 and FOLDED not in name and "gate_up_proj" not in name
        value: Matrix = stored.matrix(name) if as_it_lies else stored.value(name)
        if not paged or ".experts." not in name:
            _look_at(value, f"{stored.reader.folder}/{stored.reader.file(name)}: {name}")
        if isinstance(value, Tensor):
            value = value.to(torch.float32 if place.name.endswith("e_score_correction_bias") else dtype)
        yield name, value


def _look_at(value: Matrix, where: str) -> None:
    if isinstance(value, Tensor):
        return must_be_finite(value, where)
    must_be_finite(value.scale, where + fp8.SCALE_SUFFIX)
    bits = value.values.view(torch.uint8).numpy()
    if bits.max(initial=0) == 0xFF or bits.view(np.int8).max(initial=0) == _NAN:
        raise CheckpointError(f"{where} has values that are not numbers; copy the file again")
    return None


def _on(value: Matrix, device: torch.device | str) -> Matrix:
    if isinstance(value, Fp8Matrix):
        return Fp8Matrix(value.values.to(device), value.scale.to(device))
    assert isinstance(value, Tensor)
    return value.to(device)


def _put(model: Transformer, place: Part, value: Matrix) -> None:
    """Give `model`, in pieces, what belongs at `place` of the state dict of the network that is stacked."""
    path, _, leaf = place.name.rpartition(".")
    module = model.get_submodule(path)
    if isinstance(module, ExpertList):
        _put_experts(module, leaf, place.at, value)
    elif isinstance(module, GateUp):
        for name, half in _halves(place.at, value):
            _set(module, name, leaf, half)
    else:
        parent, _, name = path.rpartition(".")
        _set(model.get_submodule(parent), name, leaf, value)


def _put_experts(experts: ExpertList, leaf: str, at: tuple[int | slice, ...], value: Matrix) -> None:
    if not at:  # a layer's experts stacked, as transformers keeps them
        assert isinstance(value, Tensor)
        for expert, matrix in enumerate(value):
            _put_experts(experts, leaf, (expert,), matrix)
    elif leaf == "down_proj":
        experts.down[cast(int, at[0])] = value
    else:
        for name, half in _halves(at[1:], value):
            getattr(experts, name)[at[0]] = half


def _halves(at: tuple[int | slice, ...], value: Matrix) -> list[tuple[str, Matrix]]:
    """gate and up in `value`: one of the two where `at` names a half, else both."""
    if at:
        return [("gate" if cast(slice, at[0]).start is None else "up", value)]
    assert isinstance(value, Tensor)
    gate, up = value.chunk(2)
    return [("gate", gate), ("up", up)]


def _set(parent: nn.Module, name: str, leaf: str, value: Matrix) -> None:
    child = parent.get_submodule(name)
    if isinstance(value, Fp8Matrix):
        setattr(parent, name, PackedLinear(value, getattr(child, "bias", None)))
    elif leaf in child._buffers:
        setattr(child, leaf, value)
    else:
        assert isinstance(value, Tensor)
        setattr(child, leaf, nn.Parameter(value, requires_grad=False))


def _fits(files: list[Path]) -> bool:
    size = sum(path.stat().st_size for path in files) / 2**30
    if size <= (free := free_gib()):
        return True
    warnings.warn(
        f"the weights take {size:.1f} GiB and {free:.1f} GiB of memory are free: experts are read from disk as tokens "
        "choose them",
        stacklevel=3,
    )
    return False


def _read_ahead(files: list[Path]) -> None:
    """Read the files once in order: the kernel keeps what is read so in large pieces, which the processor walks through
    more than twice as fast as what page faults brought in one by one."""
    buffer = bytearray(_CHUNK)
    for path in files:
        with open(path, "rb", buffering=0) as file:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            while file.readinto(buffer):
                pass
