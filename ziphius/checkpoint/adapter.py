"""Low-rank updates in PEFT's files: adapter_config.json and adapter_model.safetensors, beside a model or by themselves.

A factor sits on a published matrix, `model.layers.0.self_attn.q_proj`, which may be a part of one of ours; PEFT calls
it `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`.

O out, D in, R rank.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ziphius.checkpoint import commit
from ziphius.checkpoint.errors import CheckpointError
from ziphius.ledger.folder import read_json
from ziphius.ledger.model import ADAPTER, ADAPTER_CONFIG, adapter_base
from ziphius.model.config import ModelConfig

_KEY = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
# What PEFT can do with an adapter that is not a low-rank sum: a value that says so, and what it is.
_REFUSED = {
    "use_dora": "weight-decomposed updates (DoRA)",
    "fan_in_fan_out": "transposed matrices",
    "modules_to_save": "whole modules trained beside the factors",
    "target_parameters": "updates of stacked experts",
    "trainable_token_indices": "trained rows of the embedding",
    "layer_replication": "repeated layers",
}


@dataclass(frozen=True)
class Factors:
    """scale·B A on a matrix [O, D]: A [R, D], B [O, R]."""

    A: Tensor
    B: Tensor
    scale: float

    def delta(self) -> Tensor:
        """The update as a matrix, fp32."""
        return (self.B.float() * self.scale) @ self.A.float()


@dataclass(frozen=True)
class Adapter:
    """`factors` by the published name of the matrix they sit on (without `.weight`), and the folder of their `base`."""

    base: Path
    factors: Mapping[str, Factors]

    @classmethod
    def read(cls, folder: Path) -> Adapter:
        """What PEFT, or `save`, wrote into `folder`. Raises CheckpointError for an adapter of another kind."""
        base = adapter_base(folder)
        assert base is not None, "a folder with adapter_config.json"
        about = read_json(folder / ADAPTER_CONFIG)
        _refuse_others(folder / ADAPTER_CONFIG, about)
        halves = _read_halves(folder / ADAPTER)
        return cls(base, {name: Factors(A, B, _scale(about, name, len(A))) for name, (A, B) in halves.items()})

    def merged(self, name: str, matrix: Tensor) -> Tensor:
        """The tensor called `name` with its update, in fp32 where it has one."""
        factors = self.factors.get(name.removesuffix(".weight"))
        return matrix if factors is None else matrix.float() + factors.delta()

    @classmethod
    def on(cls, folder: Path, factors: Mapping[str, Factors]) -> Adapter:
        """`factors` on the model in `folder`; where that is an adapter itself, both as one on its base."""
        if not (folder / ADAPTER_CONFIG).exists():
            return cls(folder, factors)
        return cls.read(folder).stacked(factors)

    def stacked(self, later: Mapping[str, Factors]) -> Adapter:
        """This adapter and a `later` one on top of it as one, of their ranks' sum: low-rank sums add up."""
        names = dict.fromkeys([*self.factors, *later])
        return Adapter(self.base, {name: _stack(self.factors.get(name), later.get(name)) for name in names})


def save_adapter(adapter: Adapter, config: ModelConfig, folder: Path, generation_config: dict[str, Any] | None) -> None:
    """Write `adapter` into `folder` as PEFT does, with the config.json of the network, as one step; see `save_state`.

    Factors are stored in fp32, and of scale alpha / rank where all have the same, else with the scale within B.
    """
    scales = {factors.scale for factors in adapter.factors.values()}
    ranks = {name: len(factors.A) for name, factors in adapter.factors.items()}
    rank = max(ranks.values())
    alpha = scales.pop() * rank if len(scales) == 1 and len({*ranks.values()}) == 1 else None
    tensors = {}
    for name, factors in adapter.factors.items():
        stem, B = f"base_model.model.{name}.lora_", factors.B.float()
        tensors[f"{stem}A.weight"] = factors.A.detach().float().cpu().contiguous()
        tensors[f"{stem}B.weight"] = (B if alpha else B * factors.scale).detach().cpu().contiguous()
    about = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(adapter.base.resolve()),
        "r": rank,
        "lora_alpha": alpha or rank,
        "rank_pattern": {name: own for name, own in ranks.items() if own != rank},
        "alpha_pattern": {name: own for name, own in ranks.items() if own != rank},
        "target_modules": _targets(adapter.factors, config),
        "bias": "none",
        "lora_dropout": 0.0,
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    texts = {ADAPTER_CONFIG: about, "generation_config.json": generation_config, "config.json": config.to_hf()}
    with commit.staging(folder, sum(tensor.nbytes for tensor in tensors.values())):
        save_file(tensors, commit.staged(folder, ADAPTER), metadata={"format": "pt"})
        written = {name: content for name, content in texts.items() if content is not None}
        for name, content in written.items():
            commit.staged(folder, name).write_text(json.dumps(content, indent=2) + "\n")
        commit.commit(folder, [ADAPTER, *written], [])


def _refuse_others(path: Path, about: dict[str, Any]) -> None:
    if about.get("peft_type") != "LORA":
        raise CheckpointError(f"{path}: peft_type is {about.get('peft_type')!r}; only LORA is read")
    if about.get("bias", "none") != "none":
        raise CheckpointError(f"{path}: bias is {about['bias']!r}: biases were trained, too, which is not read")
    for key, what in _REFUSED.items():
        if about.get(key):
            raise CheckpointError(f"{path}: {key} is {about[key]!r}: {what}, which is not read; merge it with PEFT")


def _read_halves(path: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B by the matrix's name. Raises CheckpointError for a file that is cut short, or holds other tensors."""
    halves: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            for key in list(file.keys()):
                found = _KEY.fullmatch(key)
                if found is None:
                    raise CheckpointError(f"{path}: {key} is no factor of a low-rank update; merge it with PEFT")
                halves.setdefault(found[1], {})[found[2]] = file.get_tensor(key)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; copy the adapter again") from None
    except SafetensorError as error:
        raise CheckpointError(f"{path} is cut short or no safetensors file ({error}); copy it again") from None
    for name, pair in halves.items():
        if len(pair) < 2 or pair["A"].ndim != 2 or pair["B"].ndim != 2 or len(pair["A"]) != pair["B"].shape[1]:
            raise CheckpointError(f"{path}: the factors of {name} do not fit each other; copy the adapter again")
    return {name: (pair["A"], pair["B"]) for name, pair in halves.items()}


def _scale(about: dict[str, Any], name: str, rank: int) -> float:
    """alpha / rank, or alpha / √rank where PEFT was told so; patterns give single matrices another alpha."""
    alphas = about.get("alpha_pattern") or {}
    alpha = next((own for pattern, own in alphas.items() if re.search(rf"(^|\.){pattern}$", name)), about["lora_alpha"])
    return float(alpha) / (rank**0.5 if about.get("use_rslora") else rank)


def _targets(factors: Mapping[str, Factors], config: ModelConfig) -> list[str]:
    """What PEFT is to adapt: the last names of the matrices where each of that name has factors, else whole names."""
    last = {name.rpartition(".")[2] for name in factors}
    layers = range(config.num_hidden_layers)
    everywhere = all(any(name.startswith(f"model.layers.{layer}.") for name in factors) for layer in layers)
    return sorted(last) if everywhere and config.routing is None else list(factors)


def _stack(first: Factors | None, second: Factors | None) -> Factors:
    found = [factors for factors in (first, second) if factors is not None]
    A = torch.cat([factors.A.float() for factors in found])
    B = torch.cat([factors.B.float() * factors.scale for factors in found], dim=1)
    return Factors(A, B, 1.0)
