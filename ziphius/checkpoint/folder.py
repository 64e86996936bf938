"""A Hugging Face folder in, a network out; and back."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from ziphius.checkpoint import commit, fp8
from ziphius.checkpoint.errors import CheckpointError
from ziphius.checkpoint.names import published_places, shared_copies
from ziphius.checkpoint.shards import stage_shards, weight_files
from ziphius.checkpoint.stored import StoredWeights, open_weights
from ziphius.model.config import ModelConfig
from ziphius.model.families import config_from_hf
from ziphius.model.pieces import lies_in_pieces
from ziphius.model.transformer import Transformer

MAX_SHARD_BYTES = 5 * 1024**3
FP32_ALWAYS = "e_score_correction_bias"  # kept in fp32 whatever the rest is: its steps of 0.001 vanish in bf16


def load_config(folder: str | Path, overrides: Mapping[str, Any] | None = None) -> ModelConfig:
    """The network that `folder/config.json` describes, with `overrides` in place of some of its keys.

    Raises CheckpointError when there is none of this family.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; give one that holds config.json and the weights")
    commit.complete(folder)
    path = folder / "config.json"
    if not path.exists():
        raise CheckpointError(f"{folder} holds no config.json; give the folder of a model")
    try:
        raw = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
    config = parsed_config(raw, path)
    return config.replaced(dict(overrides)) if overrides else config


def parsed_config(raw: dict[str, Any], source: Path) -> ModelConfig:
    """The network that the config.json dictionary `raw` describes. Raises CheckpointError naming `source` and key."""
    try:
        return config_from_hf(raw)
    except ValidationError as error:
        reasons = "; ".join(".".join(map(str, e["loc"])) + ": " * bool(e["loc"]) + e["msg"] for e in error.errors())
        raise CheckpointError(f"{source}: {reasons}") from None
    except ValueError as error:
        raise CheckpointError(f"{source}: {error}") from None


def load_model(
    folder: str | Path,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    overrides: Mapping[str, Any] | None = None,
) -> Transformer:
    """The network in `folder`, its weights in `dtype` (`e_score_correction_bias` in fp32) on `device`.

    Reads what DeepSeek publishes (BF16, or FP8 in blocks, which is dequantised), what transformers writes, and what
    `save_model` writes. Tensors are copied one by one into their places, so the weights exist once. Prediction
    modules that config.json promises and the folder lacks are left out with a warning: transformers drops them. Those
    that it does not mention are read. `overrides` replaces keys of config.json that change no tensor.
    Repeated tensors (a prediction module's embedding and head) must equal their originals.

    Raises CheckpointError naming the tensor or file that is missing, not expected, or of another shape; all of that
    is checked before the first value is read. A tensor with values that are not finite is refused as it is read.
    """
    folder = Path(folder)
    config = load_config(folder, overrides)
    with open_weights(folder, config) as stored:
        if stored.config.num_nextn_predict_layers < config.num_nextn_predict_layers:
            warnings.warn(without_modules(folder, config), stacklevel=2)
        model = _empty(stored.config, dtype, device)
        state = model.state_dict()
        for name, place in stored.places.items():
            value = stored.value(name)
            must_be_finite(value, f"{folder}/{stored.reader.file(name)}: {name}")
            state[place.name][place.at].copy_(value)
        copies_must_equal(stored, state)
    return model


def save_model(
    model: Transformer,
    folder: str | Path,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    dtype: torch.dtype | None = None,
    generation_config: dict[str, Any] | None = None,
    in_fp8: bool = False,
) -> None:
    """Write `model` as a folder that transformers, vLLM and SGLang open; see `save_state`.

    Raises CheckpointError for a network in pieces, which is made for sampling."""
    if lies_in_pieces(model):
        raise CheckpointError("this network was opened for sampling (load_on, quantise); save what load_model gives")
    save_state(model.config, model.state_dict(), folder, max_shard_bytes, dtype, generation_config, in_fp8)


def save_state(
    config: ModelConfig,
    state: Mapping[str, Tensor],
    folder: str | Path,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    dtype: torch.dtype | None = None,
    generation_config: dict[str, Any] | None = None,
    in_fp8: bool = False,
) -> None:
    """Write config.json, generation_config.json and the weights `state` (a whole `state_dict`) into `folder`.

    Weights are converted to `dtype` (each keeps its own when None; `e_score_correction_bias` is fp32 always). `in_fp8`
    rounds the layers' matrices to blocks of FP8, as V3 is published, which takes half of their size in BF16 as memory.
    `generation_config` replaces R1's published settings. The set is replaced as one step: after a kill at any moment
    `load_model` finds the old one or the new one, whole. Other files in `folder` stay. Raises DiskError where the
    disk refuses.
    """
    folder = Path(folder)
    tensors = {name: state[place.name][place.at] for name, place in published_places(state, config).items()}
    for name, original in shared_copies(config).items():
        if name != "lm_head.weight":  # a tied head is not written, as transformers has it
            tensors[name] = state[original]
    if in_fp8:
        tensors = fp8.quantise(tensors)
    dtype_of = {name: _written_dtype(name, tensor, dtype, in_fp8) for name, tensor in tensors.items()}
    described = config.to_hf()
    # Neither the old folder's quantisation nor its own Python files are in this one.
    for key in ("quantization_config", "auto_map", "dtype"):
        described.pop(key, None)
    if in_fp8:
        described["quantization_config"] = fp8.CONFIG
    described["torch_dtype"] = str(dtype_of["model.embed_tokens.weight"]).removeprefix("torch.")
    needed = sum(tensor.numel() * dtype_of[name].itemsize for name, tensor in tensors.items())
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    with commit.staging(folder, needed):
        names = stage_shards(folder, shapes, tensors.__getitem__, max_shard_bytes, dtype_of)
        _stage_json(folder, "generation_config.json", generation_config or default_generation_config(config))
        _stage_json(folder, "config.json", described)
        stale = weight_files(folder) - set(names)
        commit.commit(folder, [*names, "generation_config.json", "config.json"], sorted(stale))


def _written_dtype(name: str, tensor: Tensor, asked: torch.dtype | None, in_fp8: bool) -> torch.dtype:
    if name.endswith(FP32_ALWAYS) or name.endswith(fp8.SCALE_SUFFIX):
        return torch.float32
    return torch.float8_e4m3fn if in_fp8 and fp8.is_kept_so(name) else asked or tensor.dtype


def default_generation_config(config: ModelConfig) -> dict[str, Any]:
    """R1's published sampling settings with the ids of `config`."""
    ids = {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id}
    known = {key: value for key, value in ids.items() if value is not None}
    return known | {"do_sample": True, "temperature": 0.6, "top_p": 0.95}


def _empty(config: ModelConfig, dtype: torch.dtype, device: torch.device | str) -> Transformer:
    """The network with memory for its weights and nothing in it."""
    with torch.device("meta"):
        model = Transformer(config)
    for parameter in model.parameters():  # not the buffers: the gates' bias stays fp32
        parameter.data = parameter.data.to(dtype)
    model.to_empty(device=device)
    if config.tie_word_embeddings:  # to_empty gives each module memory of its own
        model.lm_head.weight = model.model.embed_tokens.weight
    return model


def without_modules(folder: Path, config: ModelConfig) -> str:
    """What to warn of where the files lack prediction modules."""
    return (
        f"{folder} has no multi-token-prediction weights though config.json counts "
        f"{config.num_nextn_predict_layers}: loaded without them"
    )


def copies_must_equal(stored: StoredWeights, state: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError where a published tensor that repeats another has other values than it has in `state`."""
    for name, original in shared_copies(stored.config).items():
        ours = state[original]
        if name in stored.reader and not torch.equal(ours.cpu(), stored.reader.tensor(name).to(ours.dtype)):
            raise CheckpointError(
                f"{stored.reader.folder}: {name} differs from {original}, which this network shares with it"
            )


def must_be_finite(value: Tensor, where: str) -> None:
    """Raise CheckpointError where `value` holds NaN or an infinity. A sum shows either in one pass without memory of
    its own; only where the sum itself is not finite (it may merely be too large) the values are looked at."""
    if not value.is_floating_point() or value.sum().isfinite():
        return
    if bad := int((~value.isfinite()).sum()):
        raise CheckpointError(
            f"{where} has {bad:,} of {value.numel():,} values that are not finite; take an earlier checkpoint, or "
            "train anew with a lower lr"
        )


def _stage_json(folder: Path, name: str, content: dict[str, Any]) -> None:
    commit.staged(folder, name).write_text(json.dumps(content, indent=2) + "\n")
