"""A whole step of the network over a paged cache in one call (`decoder.c`), on weights as they lie in memory.

N tokens of a step, D model, X the width of a cache entry, L layers, S slots.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache

import torch
from torch import Tensor

from ziphius.ops.int8 import Int8Matrix
from ziphius.ops.native.call import call
from ziphius.ops.placement import Layout, Placement

_SIGMOID, _NORMALISE, _BY_TWO_BEST = 1, 2, 4

# A network whose weights fit the caches beside the cores is shared by tokens: each thread reads them all, none waits.
_CACHED_BYTES = 4 << 20


Matrix = Tensor | Int8Matrix


@dataclass(kw_only=True)
class LayerWeights:
    """One layer's tensors, fp32 or bf16 and contiguous, its matrices also int8. None where the layer has no such part.

    `q` makes the queries, of the model's states or of their latents where there is a `q_a`; `q_norm` is of those
    latents, or of each head where attention is grouped. `gate_up`, `down` are the dense or the shared MLP's.
    """

    input_norm: Tensor
    post_norm: Tensor
    q: Matrix
    q_norm: Tensor | None = None
    o: Matrix
    # latent attention
    q_a: Matrix | None = None
    kv_a: Matrix | None = None
    kv_norm: Tensor | None = None
    kv_b: Tensor | None = None
    # grouped attention
    k: Matrix | None = None
    v: Matrix | None = None
    k_norm: Tensor | None = None
    q_bias: Tensor | None = None
    k_bias: Tensor | None = None
    v_bias: Tensor | None = None
    # the MLP
    gate_up: Matrix | None = None
    down: Matrix | None = None
    gate: Tensor | None = None
    gate_bias: Tensor | None = None
    experts_up: Matrix | None = None
    experts_down: Matrix | None = None


@dataclass
class LatentShape:
    """Of latent attention: a head's no-position part, rope part and value, and the latent."""

    nope: int
    rope: int
    value: int
    rank: int
    eps: float


@dataclass
class DecoderShape:
    """What the tensors' sizes do not tell. Attention is grouped where `latent` is None."""

    heads: int
    layout: Layout
    latent: LatentShape | None
    eps: float
    scale: float


@dataclass
class GateRule:
    """`groups`, `kept_groups`: 1 and 0 where groups do not count."""

    top_k: int
    groups: int
    kept_groups: int
    sigmoid: bool
    normalise: bool
    by_two_best: bool
    factor: float


_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}


class _Weight(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("kind", ctypes.c_int64), ("scale", ctypes.c_void_p)]

    @classmethod
    def of(cls, x: Matrix | None) -> _Weight:
        if x is None:
            return cls(None, 0, None)
        values, scale = (x.values, x.scale.data_ptr()) if isinstance(x, Int8Matrix) else (x, None)
        return cls(values.data_ptr(), _KINDS[values.dtype], scale)


_NAMES = [field.name for field in fields(LayerWeights)]


class _Layer(ctypes.Structure):
    _fields_ = [
        *[(name, _Weight) for name in _NAMES],
        ("hidden", ctypes.c_int64),
        ("routed", ctypes.c_int64),
    ]


_SIZES = (
    "D", "H", "groups", "key", "value", "value_start", "X", "N", "R", "V", "C", "Q",
    "E", "K", "F", "expert_groups", "kept_groups", "router_flags", "widest",
)  # fmt: skip


class _Shape(ctypes.Structure):
    _fields_ = [
        *[(name, ctypes.c_int64) for name in _SIZES],
        *[(name, ctypes.c_float) for name in ("eps", "latent_eps", "scale", "factor")],
    ]


class _Cache(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        *[(name, ctypes.c_int64) for name in ("layer", "half", "block")],
        ("tables", ctypes.c_void_p),
        ("columns", ctypes.c_int64),
        ("cosine", ctypes.c_void_p),
        ("sine", ctypes.c_void_p),
    ]


class Decoder:
    """The layers of one network, which must keep their tensors where they are (in-place updates are seen at once).

    A token's result does not depend on the tokens beside it nor on the number of threads.
    """

    def __init__(
        self, shape: DecoderShape, rule: GateRule | None, layers: Sequence[LayerWeights], cos: Tensor, sin: Tensor
    ) -> None:
        """`rule` is None where no layer has experts; cos, sin [positions, rotated pairs]."""
        _check_structures()
        self._tensors = [x for layer in layers for name in _NAMES for x in _parts(getattr(layer, name))]
        for x in self._tensors:
            assert x.is_contiguous(), "decoder weights"
        self.cos, self.sin = cos.float().contiguous(), sin.float().contiguous()
        self._layers = (_Layer * len(layers))(*map(_describe, layers))
        self._shape = _Shape(
            D=layers[0].input_norm.numel(), **_attention_sizes(shape, layers[0]), **_expert_sizes(rule, layers),
            widest=max(map(_hidden, layers)),
        )  # fmt: skip
        self._bytes = sum(x.numel() * x.element_size() for x in self._tensors)

    def run(
        self, x_ND: Tensor, memory_LSX: Tensor, placement: Placement, final_norm: Tensor, first: int, count: int
    ) -> Tensor:
        """Layers `first` … `first + count − 1` and a final norm on fp32 `x_ND`, which is overwritten -> fp32 [N, D].

        The tokens' entries join the memory (fp32 or bf16).
        """
        out = torch.empty_like(x_ND)
        tables = placement.tables_BM
        cache = _Cache(
            memory_LSX.data_ptr(), memory_LSX.stride(0), memory_LSX.dtype == torch.bfloat16, placement.block_size,
            tables.data_ptr(), tables.shape[1], self.cos.data_ptr(), self.sin.data_ptr(),
        )  # fmt: skip
        call(
            "decoder_run",
            ctypes.byref(self._shape), ctypes.byref(self._layers, first * ctypes.sizeof(_Layer)), first, count,
            ctypes.byref(_Weight.of(final_norm)), ctypes.byref(cache),
            placement.rows_N.data_ptr(), placement.positions_N.data_ptr(), placement.slots_N.data_ptr(),
            x_ND.data_ptr(), out.data_ptr(), len(x_ND), torch.get_num_threads(), self._bytes <= _CACHED_BYTES,
        )  # fmt: skip
        return out


def linear(x_ND: Tensor, weight_WD: Matrix) -> Tensor:
    """fp32 x·weightᵀ -> [N, W]; as in `Decoder`, a token's result is its own."""
    out = x_ND.new_empty(len(x_ND), weight_WD.shape[0])
    weight = ctypes.byref(_Weight.of(weight_WD))
    call("decoder_linear", x_ND.data_ptr(), weight, *out.shape, x_ND.shape[1], out.data_ptr(), torch.get_num_threads())
    return out


def _parts(x: Matrix | None) -> list[Tensor]:
    if x is None:
        return []
    return [x.values, x.scale] if isinstance(x, Int8Matrix) else [x]


def _hidden(layer: LayerWeights) -> int:
    return 0 if layer.down is None else layer.down.shape[1]


def _describe(layer: LayerWeights) -> _Layer:
    weights = {name: _Weight.of(getattr(layer, name)) for name in _NAMES}
    return _Layer(**weights, hidden=_hidden(layer), routed=layer.gate is not None)


def _attention_sizes(shape: DecoderShape, layer: LayerWeights) -> dict[str, float]:
    layout, latent = shape.layout, shape.latent
    sizes = {"H": shape.heads, "eps": shape.eps, "scale": shape.scale, "X": layout.width, "groups": layout.heads}
    sizes |= {"key": layout.key, "value": layout.value, "value_start": layout.value_start}
    if latent is None:
        return sizes | {"R": layout.key, "V": layout.value}
    sizes |= {"N": latent.nope, "R": latent.rope, "V": latent.value, "C": latent.rank, "latent_eps": latent.eps}
    return sizes | {"Q": 0 if layer.q_a is None else layer.q_a.shape[0]}


def _expert_sizes(rule: GateRule | None, layers: Sequence[LayerWeights]) -> dict[str, float]:
    routed = next((layer for layer in layers if layer.gate is not None), None)
    if rule is None or routed is None:
        return {}
    assert routed.gate is not None
    assert routed.experts_down is not None
    flags = _SIGMOID * rule.sigmoid + _NORMALISE * rule.normalise + _BY_TWO_BEST * rule.by_two_best
    return {
        "E": routed.gate.shape[0], "K": rule.top_k, "F": routed.experts_down.shape[2],
        "expert_groups": rule.groups, "kept_groups": rule.kept_groups, "router_flags": flags, "factor": rule.factor,
    }  # fmt: skip


@cache
def _check_structures() -> None:
    """The structures here and in C are as large: a field added on one side only would shift all that follow."""
    ours = [ctypes.sizeof(kind) for kind in (_Weight, _Layer, _Shape, _Cache)]
    theirs = (ctypes.c_int64 * len(ours))()
    call("decoder_sizes", ctypes.addressof(theirs))
    assert list(theirs) == ours, f"structures of decoder.py have {ours} bytes, those of step.h {list(theirs)}"
