"""A Hugging Face folder as one GGUF file, which llama.cpp runs.

C latent, D model, E experts, F expert hidden, H heads, N no-position part, V value head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal

import numpy as np
from torch import Tensor

from ziphius.checkpoint.errors import CheckpointError
from ziphius.checkpoint.folder import load_config
from ziphius.checkpoint.gguf_keys import ARCHITECTURE, Value, network_keys, small_differences
from ziphius.checkpoint.stored import StoredWeights, open_weights
from ziphius.disk.write import replacing
from ziphius.model.deepseek.config import DeepSeekConfig

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFWriter

WeightType = Literal["f32", "bf16", "q8_0"]
_FILE_TYPES = {"f32": 0, "q8_0": 7, "bf16": 32}  # their numbers in general.file_type
_Q8_BLOCK = 32

_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_a_layernorm": "attn_q_a_norm",
    "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate": "ffn_gate_inp",
    "mlp.down_proj": "ffn_down",
    "mlp.shared_experts.down_proj": "ffn_down_shexp",
    "mlp.experts.down_proj": "ffn_down_exps",
}
_GATE_AND_UP = {  # ours lie in one matrix, gate first
    "mlp.gate_up_proj": "",
    "mlp.shared_experts.gate_up_proj": "_shexp",
    "mlp.experts.gate_up_proj": "_exps",
}
_OUTSIDE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


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

    Weights go through memory one tensor at a time. Norms, gates and selection biases stay in fp32 whatever
    `weight_type` says; a tensor whose rows are no multiple of q8_0's 32 is kept in bf16. Prediction modules are left
    out. Without a `vocabulary` the file has none, and takes token ids only. `name` is the model's (else the folder's).
    `on_progress` hears of the bytes written and of all. A file that was there is replaced once the new one is whole.

    Raises CheckpointError where the folder cannot be read, where llama.cpp would compute another network, and where
    the package `gguf` is missing.
    """
    gguf = _package()
    if out.is_dir():
        raise CheckpointError(f"{out} is a folder; name the file to write, such as {out / 'model.gguf'}")
    config = load_config(folder)
    if not isinstance(config, DeepSeekConfig):
        raise CheckpointError(f"{folder} is of the family {config.model_type!r}; only DeepSeek's are written as GGUF")
    keys = {
        "general.name": name or folder.resolve().name,
        "general.file_type": _FILE_TYPES[weight_type],
        "general.quantization_version": gguf.GGML_QUANT_VERSION,
        **network_keys(config),
        **(vocabulary or {"tokenizer.ggml.model": "none"}),
    }
    with open_weights(folder, config) as stored, replacing(out) as aside:
        writer = gguf.GGUFWriter(aside, ARCHITECTURE)
        for key, value in keys.items():
            _add(writer, key, value)
        plan = _plan(stored, config, weight_type)
        for tensor in plan.values():
            writer.add_tensor_info(tensor.name, tensor.shape, np.dtype("f4"), tensor.size, raw_dtype=tensor.kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        done, total = 0, sum(tensor.size for tensor in plan.values())
        for ours in _exported(stored):
            for part, values in pieces(ours, stored.assembled(ours), config).items():
                writer.write_tensor_data(gguf.quantize(values.contiguous().numpy(), plan[part].kind))
                done += plan[part].size
                on_progress(done, total)
        writer.close()
    return Exported(
        path=out,
        tensors=len(plan),
        parameters=sum(math.prod(tensor.shape) for tensor in plan.values()),
        size=out.stat().st_size,
        notes=_notes(config, plan, weight_type, vocabulary),
    )


def pieces(name: str, tensor: Tensor, config: DeepSeekConfig) -> dict[str, Tensor]:
    """The GGUF tensors that our tensor `name` becomes; meta tensors do, where only shapes are asked for.

    What holds two matrices is parted. kv_b_proj becomes the keys' half, transposed to [H, C, N] as the absorbed form
    multiplies by it, and the values' half [H, V, C].
    """
    if name in _OUTSIDE:
        return {_OUTSIDE[name]: tensor}
    _, _, layer, inner = name.split(".", 3)
    module, block = inner.removesuffix(".weight"), f"blk.{layer}"
    if module == "mlp.gate.e_score_correction_bias":
        return {f"{block}.exp_probs_b.bias": tensor}
    if module == "self_attn.kv_b_proj":
        up_HXC = tensor.unflatten(0, (config.num_attention_heads, -1))
        key_HNC, value_HVC = up_HXC.split([config.qk_nope_head_dim, config.v_head_dim], dim=1)
        return {f"{block}.attn_k_b.weight": key_HNC.transpose(1, 2), f"{block}.attn_v_b.weight": value_HVC}
    if module in _GATE_AND_UP:
        gate, up = tensor.chunk(2, dim=-2)
        end = _GATE_AND_UP[module]
        return {f"{block}.ffn_gate{end}.weight": gate, f"{block}.ffn_up{end}.weight": up}
    return {f"{block}.{_NAMES[module]}.weight": tensor}


@dataclass
class _Planned:
    """A tensor of the file: how it will be kept, and its bytes."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    size: int


def _plan(stored: StoredWeights, config: DeepSeekConfig, weight_type: WeightType) -> dict[str, _Planned]:
    """The file's tensors in their order."""
    gguf = _package()
    found = {}
    for ours in _exported(stored):
        for name, tensor in pieces(ours, stored.state[ours], config).items():
            kind = gguf.GGMLQuantizationType[_type_of(name, tensor, weight_type).upper()]
            block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
            found[name] = _Planned(name, tuple(tensor.shape), kind, tensor.numel() // block * block_bytes)
    return found


def _type_of(name: str, tensor: Tensor, weight_type: WeightType) -> WeightType:
    if tensor.ndim == 1 or name.endswith("ffn_gate_inp.weight"):
        return "f32"
    if weight_type == "q8_0" and tensor.shape[-1] % _Q8_BLOCK:
        return "bf16"
    return weight_type


def _exported(stored: StoredWeights) -> list[str]:
    return [name for name in stored.state if not name.startswith("mtp.")]


def _notes(
    config: DeepSeekConfig,
    plan: Mapping[str, _Planned],
    weight_type: WeightType,
    vocabulary: Mapping[str, Value] | None,
) -> list[str]:
    notes = small_differences(config)
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


def _package() -> ModuleType:
    try:
        import gguf
    except ImportError:
        raise CheckpointError("writing GGUF needs the package gguf: pip install 'ziphius[gguf]'") from None
    return gguf
