"""A Hugging Face folder in, a network out; and back."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from ziphius.checkpoint import commit, fp8
from ziphius.checkpoint.errors import CheckpointError
from ziphius.checkpoint.names import Place, layer_of, published_places, shared_copies
from ziphius.checkpoint.shards import ShardReader, stage_shards, weight_files
from ziphius.model.config import ModelConfig
from ziphius.model.transformer import Transformer

MAX_SHARD_BYTES = 5 * 1024**3
_FP32 = "e_score_correction_bias"  # kept in fp32 whatever the rest is: its steps of 0.001 vanish in bf16


def load_config(folder: str | Path) -> ModelConfig:
    """The network that `folder/config.json` describes. Raises CheckpointError when there is none of this family."""
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; give one that holds config.json and the weights")
    commit.complete(folder)
    path = folder / "config.json"
    if not path.exists():
        raise CheckpointError(f"{folder} holds no config.json; give the folder of a model")
    try:
        return ModelConfig.from_hf(json.loads(path.read_text()))
    except ValidationError as error:
        reasons = "; ".join(".".join(map(str, e["loc"])) + ": " * bool(e["loc"]) + e["msg"] for e in error.errors())
        raise CheckpointError(f"{path}: {reasons}") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None


def model_folder(folder: Path) -> Path:
    """`folder` itself, or the last trained stage of a run folder. Raises ValueError for a run without one."""
    if (folder / "stages").is_dir():
        trained = sorted(path.parent for path in (folder / "stages").glob("*/config.json"))
        if not trained:
            raise ValueError(f"{folder}: no stage of this run has written a model yet")
        return trained[-1]
    return folder


def load_model(
    folder: str | Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Transformer:
    """The network in `folder`, its weights in `dtype` (`e_score_correction_bias` in fp32) on `device`.

    Reads what DeepSeek publishes (BF16, or FP8 in blocks, which is dequantised), what transformers writes, and what
    `save_model` writes. Tensors are copied one by one into their places, so the weights exist once. Prediction
    modules that config.json promises and the folder lacks are left out with a warning: transformers drops them.
    Repeated tensors (a prediction module's embedding and head) must equal their originals.

    Raises CheckpointError naming the tensor or file that is missing, not expected, or of another shape; all of that
    is checked before the first value is read.
    """
    folder = Path(folder)
    config = load_config(folder)
    block = fp8.weight_block(folder / "config.json", config.extra.get("quantization_config"))
    with ShardReader(folder) as reader:
        layers = config.num_hidden_layers
        if config.num_nextn_predict_layers and not any((layer_of(name) or 0) >= layers for name in reader):
            warnings.warn(
                f"{folder} has no multi-token-prediction weights though config.json counts "
                f"{config.num_nextn_predict_layers}: loaded without them",
                stacklevel=2,
            )
            config = config.model_copy(update={"num_nextn_predict_layers": 0})
        model = _empty(config, dtype, device)
        state = model.state_dict()
        places = _match(reader, state, config, block)
        for name, place in places.items():
            state[place.name][place.part].copy_(_value(reader, name, block))
        for name, original in shared_copies(config).items():
            if name in reader and not torch.equal(state[original].cpu(), reader.tensor(name).to(dtype)):
                raise CheckpointError(f"{folder}: {name} differs from {original}, which this network shares with it")
    return model


def save_model(
    model: Transformer,
    folder: str | Path,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    dtype: torch.dtype | None = None,
    generation_config: dict[str, Any] | None = None,
) -> None:
    """Write `model` as a folder that transformers, vLLM and SGLang open; see `save_state`.

    Raises CheckpointError for a network in 8 bits, which is made for sampling."""
    if any(tensor.dtype == torch.int8 for tensor in model.buffers()):
        raise CheckpointError("weights in 8-bit integers are for sampling; save the network before it is quantised")
    save_state(model.config, model.state_dict(), folder, max_shard_bytes, dtype, generation_config)


def save_state(
    config: ModelConfig,
    state: Mapping[str, Tensor],
    folder: str | Path,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    dtype: torch.dtype | None = None,
    generation_config: dict[str, Any] | None = None,
) -> None:
    """Write config.json, generation_config.json and the weights `state` (a whole `state_dict`) into `folder`.

    Weights are converted to `dtype` (each keeps its own when None; `e_score_correction_bias` is fp32 always).
    `generation_config` replaces R1's published settings. The set is replaced as one step: after a kill at any moment
    `load_model` finds the old one or the new one, whole. Other files in `folder` stay.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    commit.complete(folder)
    commit.discard_staged(folder)
    tensors = {name: state[place.name][place.part] for name, place in published_places(state, config).items()}
    for name, original in shared_copies(config).items():
        if name != "lm_head.weight":  # a tied head is not written, as transformers has it
            tensors[name] = state[original]
    dtype_of = {
        name: torch.float32 if name.endswith(_FP32) else dtype or tensor.dtype for name, tensor in tensors.items()
    }
    names = stage_shards(folder, tensors.items(), max_shard_bytes, dtype_of)

    described = config.to_hf()
    # Neither the old folder's quantisation nor its own Python files are in this one.
    for key in ("quantization_config", "auto_map", "dtype"):
        described.pop(key, None)
    described["torch_dtype"] = str(dtype_of["model.embed_tokens.weight"]).removeprefix("torch.")
    _stage_json(folder, "generation_config.json", generation_config or default_generation_config(config))
    _stage_json(folder, "config.json", described)
    stale = weight_files(folder) - set(names)
    commit.commit(folder, [*names, "generation_config.json", "config.json"], sorted(stale))


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


def _match(
    reader: ShardReader, state: Mapping[str, Tensor], config: ModelConfig, block: tuple[int, int]
) -> dict[str, Place]:
    """Stored name -> place, in the order of the files, once nothing is missing, left over, or of another shape.

    Beside the published names a folder may hold a layer's experts stacked under our name, as transformers keeps them.
    """
    published = published_places(state, config)
    copies = shared_copies(config)
    found: dict[str, Place] = {}
    unexpected = []
    for name in reader:
        place = published.get(name) or (Place(name) if name in state and name not in copies else None)
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
        _expect(reader, name, tuple(state[place.name][place.part].shape))
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


def _value(reader: ShardReader, name: str, block: tuple[int, int]) -> Tensor:
    tensor = reader.tensor(name)
    if tensor.dtype != torch.float8_e4m3fn:
        return tensor
    if name + fp8.SCALE_SUFFIX not in reader:
        raise CheckpointError(f"{reader.folder}: {name} is FP8 and its scales, {name + fp8.SCALE_SUFFIX}, are missing")
    return fp8.dequantise(tensor, reader.tensor(name + fp8.SCALE_SUFFIX), block)


def _first(names: Iterable[str]) -> str:
    first, *rest = names
    return f"{first} (and {len(rest)} more)" if rest else first


def _stage_json(folder: Path, name: str, content: dict[str, Any]) -> None:
    commit.staged(folder, name).write_text(json.dumps(content, indent=2) + "\n")
