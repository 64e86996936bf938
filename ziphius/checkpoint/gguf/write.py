"""A Hugging Face folder as one GGUF file, which llama.cpp runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from ziphius.checkpoint.errors import CheckpointError
from ziphius.checkpoint.folder import load_config
from ziphius.checkpoint.gguf.architectures import ARCHITECTURES, MODEL_TYPES
from ziphius.checkpoint.gguf.keys import Value
from ziphius.checkpoint.gguf.links import Link
from ziphius.checkpoint.gguf.package import gguf_package
from ziphius.checkpoint.stored import StoredWeights, open_weights
from ziphius.disk.write import replacing
from ziphius.model.config import ModelConfig

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFWriter

WeightType = Literal["f32", "bf16", "q8_0"]
_FILE_TYPES = {"f32": 0, "q8_0": 7, "bf16": 32}  # their numbers in general.file_type
_Q8_BLOCK = 32


@dataclass
class Exported:
    """What was written: `parameters` in `tensors` tensors, `size` bytes in all, and what a person should know of it."""

    path: Path
    tensors: int
    parameters: int
    size: int
    notes: list[str]


def write_gguf(
    folder: Path,
    out: Path,
    weight_type: WeightType = "f32",
    vocabulary: Mapping[str, Value] | None = None,
    name: str | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Exported:
    """Write the network in `folder`, with the keys of its tokenizer, as the GGUF file `out`.

    Weights go through memory one tensor of the file at a time. Norms, gates and selection biases stay in fp32 whatever
    `weight_type` says; a tensor whose rows are no multiple of q8_0's 32 is kept in bf16. Prediction modules are left
    out. Without a `vocabulary` the file has none, and takes token ids only. `name` is the model's (else the folder's).
    `on_progress` hears of the bytes written and of all. A file that was there is replaced once the new one is whole.

    Raises CheckpointError where the folder cannot be read, where llama.cpp would compute another network, and where
    the package `gguf` is missing.
    """
    gguf = gguf_package()
    if out.is_dir():
        raise CheckpointError(f"{out} is a folder; name the file to write, such as {out / 'model.gguf'}")
    config = load_config(folder)
    family = MODEL_TYPES[config.model_type]
    architecture = ARCHITECTURES[family]
    keys = {
        "general.name": name or folder.resolve().name,
        "general.file_type": _FILE_TYPES[weight_type],
        "general.quantization_version": gguf.GGML_QUANT_VERSION,
        **architecture.network_keys(config),
        **(vocabulary or {"tokenizer.ggml.model": "none"}),
    }
    links, constants = list(architecture.links(config)), architecture.constants(config)
    with open_weights(folder, config) as stored, replacing(out) as aside:
        writer = gguf.GGUFWriter(aside, family)
        for key, value in keys.items():
            _add(writer, key, value)
        shapes = {name: shape for link in links for name, shape in link.file_shapes().items()}
        plan = _plan(shapes | {name: values.shape for name, values in constants.items()}, weight_type)
        for tensor in plan.values():
            writer.add_tensor_info(tensor.name, tensor.shape, np.dtype("f4"), tensor.size, raw_dtype=tensor.kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        done, total = 0, sum(tensor.size for tensor in plan.values())
        for link in links:
            for values in _values(stored, link, plan):
                writer.write_tensor_data(values)
                done += values.nbytes
                on_progress(done, total)
        for values in constants.values():
            writer.write_tensor_data(values)
        on_progress(total, total)
        writer.close()
    return Exported(
        path=out,
        tensors=len(plan),
        parameters=sum(math.prod(tensor.shape) for tensor in plan.values()),
        size=out.stat().st_size,
        notes=architecture.small_differences(config) + _notes(config, plan, weight_type, vocabulary),
    )


@dataclass
class _Planned:
    """A tensor of the file: how it will be kept, and its bytes."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    size: int


def _plan(shapes: Mapping[str, tuple[int, ...]], weight_type: WeightType) -> dict[str, _Planned]:
    """The file's tensors in their order."""
    gguf = gguf_package()
    found = {}
    for name, shape in shapes.items():
        kind = gguf.GGMLQuantizationType[_type_of(name, shape, weight_type).upper()]
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        found[name] = _Planned(name, shape, kind, math.prod(shape) // block * block_bytes)
    return found


def _type_of(name: str, shape: tuple[int, ...], weight_type: WeightType) -> WeightType:
    if len(shape) == 1 or name.endswith("ffn_gate_inp.weight"):
        return "f32"
    if weight_type == "q8_0" and shape[-1] % _Q8_BLOCK:
        return "bf16"
    return weight_type


def _values(stored: StoredWeights, link: Link, plan: Mapping[str, _Planned]) -> list[np.ndarray]:
    """What the file's tensors of `link` hold. Experts are quantised one by one, so that no stack of them is in fp32."""
    kinds = [plan[name].kind for name in link.names]
    each = [
        [
            gguf_package().quantize(part.contiguous().numpy(), kind)
            for part, kind in zip(link.form.to_file(stored.published(name).float()), kinds, strict=True)
        ]
        for name in link.published_names()
    ]
    return each[0] if link.experts is None else [np.stack(parts) for parts in zip(*each, strict=True)]


def _notes(
    config: ModelConfig,
    plan: Mapping[str, _Planned],
    weight_type: WeightType,
    vocabulary: Mapping[str, Value] | None,
) -> list[str]:
    notes = []
    if config.num_nextn_predict_layers:
        notes.append(
            f"{config.num_nextn_predict_layers} prediction module(s) left out: llama.cpp does not draft with them"
        )
    if weight_type == "q8_0":
        notes.append("llama.cpp on a CPU with AMX may fail to load q8_0 (docs/SERVING.md); bf16 loads")
    if vocabulary is None:
        notes.append("no tokenizer in the folder: the file takes token ids, not text")
    odd = [tensor for tensor in plan.values() if weight_type == "q8_0" and tensor.kind.name == "BF16"]
    if odd:
        rows = sorted({tensor.shape[-1] for tensor in odd})
        notes.append(
            f"{len(odd)} tensors with rows of {', '.join(map(str, rows))} are kept in bf16: q8_0 takes multiples of "
            f"{_Q8_BLOCK} ({odd[0].name} is the first)"
        )
    return notes


def _add(writer: GGUFWriter, key: str, value: Value) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
