"""A GGUF file as a Hugging Face folder, its weights out of their number formats."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ziphius.checkpoint import commit
from ziphius.checkpoint.errors import CheckpointError
from ziphius.checkpoint.folder import FP32_ALWAYS, parsed_config
from ziphius.checkpoint.gguf.architectures import ARCHITECTURES
from ziphius.checkpoint.gguf.file import GGUFFile
from ziphius.checkpoint.gguf.keys import Keys
from ziphius.checkpoint.gguf.links import Link
from ziphius.checkpoint.shards import stage_shards
from ziphius.model.config import ModelConfig

Dtype = Literal["auto", "bf16", "fp32"]
SHARD_BYTES = 1024**3  # a shard is in memory as it is written
_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
_END_TOKENS = ("eos", "eot", "eom")  # of the text, of a turn, of a message that calls a tool
_SAMPLING = {"temp": "temperature", "top_p": "top_p", "min_p": "min_p", "penalty_repeat": "repetition_penalty"}


@dataclass
class Described:
    """The network of a GGUF file: its config, what generation_config.json will say, where its tensors lie, and in what
    number formats, the one with most weights first."""

    config: ModelConfig
    generation: dict[str, Any]
    links: list[Link]
    kinds: list[str]

    @property
    def parameters(self) -> int:
        return sum(math.prod(link.shape) * (link.experts or 1) for link in self.links)


def describe(file: GGUFFile) -> Described:
    """The network of `file`, once every tensor that it needs is there in its shape, and no other.

    Raises CheckpointError naming what is missing, left over or of another shape, and for networks that are not read.
    """
    name = Keys(file.keys, "general.", file.path).text("architecture")
    if name not in ARCHITECTURES:
        raise CheckpointError(f"{file.path} is of the architecture {name!r}; {', '.join(ARCHITECTURES)} are read")
    if Keys(file.keys, "split.", file.path).count("count", 0) > 1:
        raise CheckpointError(
            f"{file.path} is one of several parts; join them with llama.cpp's llama-gguf-split --merge"
        )
    architecture = ARCHITECTURES[name]
    raw = architecture.read_config(Keys(file.keys, f"{name}.", file.path), file)
    raw["tie_word_embeddings"] = "output.weight" not in file.tensors
    raw["vocab_size"] = file.tensors["token_embd.weight"].shape[0] if "token_embd.weight" in file.tensors else 0
    ids, generation = _token_ids(file, raw["vocab_size"])
    config = parsed_config(raw | ids, file.path)
    if config.num_hidden_layers > len(file.tensors):
        raise CheckpointError(f"{file.path} states {config.num_hidden_layers:,} layers and lacks most; copy it again")
    links = list(architecture.links(config))
    _check(file, links, set(architecture.constants(config)))
    weights: Counter[str] = Counter()
    for tensor in file.tensors.values():
        weights[tensor.kind.name] += math.prod(tensor.shape)
    return Described(config, generation, links, [kind for kind, _ in weights.most_common()])


def write_folder(
    file: GGUFFile,
    described: Described,
    folder: Path,
    dtype: Dtype = "auto",
    others: Mapping[str, str] | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> torch.dtype:
    """Write config.json, generation_config.json, the weights and the texts `others` (name -> content) into `folder`.

    Weights become `dtype`; `auto` is fp32 where the file keeps every matrix so, else bf16. They go through memory a
    shard at a time, and all of it appears at once or not at all. `on_progress` hears of the bytes written and of all.

    Returns the weights' dtype. Raises CheckpointError for a folder that holds something, and for values that are not
    finite or of a number format that cannot be read; DiskError where the disk refuses.
    """
    if folder.exists() and (not folder.is_dir() or any(not path.name.startswith(".") for path in folder.iterdir())):
        raise CheckpointError(f"{folder} is there already and not empty; name a new folder")
    chosen = _DTYPES.get(dtype) or _stored_dtype(file)
    places = {
        name: (link, part if link.experts is not None else None)
        for link in described.links
        for part, name in enumerate(link.published_names())
    }
    dtype_of = {name: torch.float32 if name.endswith(FP32_ALWAYS) else chosen for name in places}
    total = sum(math.prod(link.shape) * dtype_of[name].itemsize for name, (link, _) in places.items())
    done = 0

    def read(name: str) -> Tensor:
        nonlocal done
        value = _value(file, *places[name])
        if not value.isfinite().all():
            raise CheckpointError(f"{file.path}: {name} has values that are not finite; it is damaged, copy it again")
        done += value.numel() * dtype_of[name].itemsize
        on_progress(done, total)
        return value

    raw = described.config.to_hf() | {"torch_dtype": str(chosen).removeprefix("torch.")}
    texts = {
        **(others or {}),
        "generation_config.json": json.dumps(described.generation, indent=2) + "\n",
        "config.json": json.dumps(raw, indent=2) + "\n",
    }
    with commit.staging(folder, total):
        shapes = {name: link.shape for name, (link, _) in places.items()}
        names = stage_shards(folder, shapes, read, SHARD_BYTES, dtype_of)
        for name, text in texts.items():
            commit.staged(folder, name).write_text(text, encoding="utf-8")
        commit.commit(folder, [*names, *texts], [])
    return chosen


def _value(file: GGUFFile, link: Link, part: int | None) -> Tensor:
    """The published tensor of `link` (its expert `part`), fp32."""
    parts = tuple(torch.from_numpy(np.array(file.values(name, part))) for name in link.names)
    return link.form.from_file(parts)


def _stored_dtype(file: GGUFFile) -> torch.dtype:
    kinds = {tensor.kind.name for tensor in file.tensors.values() if len(tensor.shape) > 1}
    return torch.float32 if kinds == {"F32"} else torch.bfloat16


def _token_ids(file: GGUFFile, vocab_size: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """What config.json and generation_config.json say of the special tokens, and of sampling where the file does."""
    keys = Keys(file.keys, "tokenizer.ggml.", file.path)

    def token(name: str) -> int:
        found = keys.count(f"{name}_token_id")
        if found >= vocab_size:
            raise CheckpointError(f"{file.path}: {name}_token_id is {found}, of {vocab_size} tokens; convert it again")
        return found

    names = {"bos": "bos_token_id", "eos": "eos_token_id", "padding": "pad_token_id"}
    ids = {ours: token(theirs) for theirs, ours in names.items() if f"{theirs}_token_id" in keys}
    ends = list(dict.fromkeys(token(name) for name in _END_TOKENS if f"{name}_token_id" in keys))
    generation: dict[str, Any] = dict(ids)
    if len(ends) > 1:
        generation["eos_token_id"] = ends
    sampling = Keys(file.keys, "general.sampling.", file.path)
    advised = {ours: sampling.number(theirs, zero=True) for theirs, ours in _SAMPLING.items() if theirs in sampling}
    if "temperature" in advised:
        advised["do_sample"] = advised["temperature"] > 0
    return ids, generation | advised


def _check(file: GGUFFile, links: list[Link], constants: set[str]) -> None:
    largest = 8 * file.size  # no number format takes less than a bit a value
    for link in links:
        if math.prod(link.shape) * (link.experts or 1) > largest:
            raise CheckpointError(f"{file.path} describes {link.names[0]} as larger than the file; copy it again")
    expected = {name: shape for link in links for name, shape in link.file_shapes().items()}
    for name, shape in expected.items():
        if name not in file.tensors:
            raise CheckpointError(f"{file.path} lacks {name}, which the network of its keys has; convert it again")
        if file.tensors[name].shape != shape:
            raise CheckpointError(
                f"{file.path}: {name} has shape {list(file.tensors[name].shape)}, its keys expect {list(shape)}"
            )
    unexpected = file.tensors.keys() - expected.keys() - constants
    if unexpected:
        raise CheckpointError(
            f"{file.path} holds {min(unexpected)}, which the network of its keys does not have; it is of a kind that "
            "is not read"
        )
