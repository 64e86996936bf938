"""A whole step of the network over a paged cache in one call (`decoder.c`), on weights as they lie in memory.

N tokens of a step, D model, X the width of a cache entry, L layers, S slots.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cache
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from ziphius.ops.matrix import Matrix, tensors_of
from ziphius.ops.native.call import call
from ziphius.ops.placement import Layout, Placement

_SIGMOID, _NORMALISE, _BY_TWO_BEST = 1, 2, 4

# A network whose weights fit the caches beside the cores is shared by tokens: each thread reads them all, none waits.
_CACHED_BYTES = 4 << 20


class MlpWeights(NamedTuple):
    """silu(gate)·up, then down: matrices [F, D], [F, D], [D, F]."""

    gate: Matrix
    up: Matrix
    down: Matrix


@dataclass(kw_only=True)
class LayerWeights:
    """One layer's tensors, fp32 or bf16 and contiguous, its matrices also in 8 bits. None: no such part.

    `q` makes the queries, of the model's states or of their latents where there is a `q_a`; `q_norm` is of those
    latents, or of each head where attention is grouped. `dense` is the dense or the shared MLP.
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
    router: Tensor | None = None
    router_bias: Tensor | None = None
    dense: MlpWeights | None = None
    experts: Sequence[MlpWeights] = ()

    @property
    def hidden(self) -> int:
        """Of the dense or the shared MLP."""
        return 0 if self.dense is None else self.dense.down.shape[1]

    def tensors(self) -> Iterator[Tensor]:
        matrices = [*(getattr(self, name) for name in _NAMES), *(self.dense or ()), *chain(*self.experts)]
        return chain.from_iterable(tensors_of(matrix) for matrix in matrices if matrix is not None)


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


_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2, torch.float8_e4m3fn: 3}


class _Weight(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("kind", ctypes.c_int64), ("scale", ctypes.c_void_p)]

    @classmethod
    def of(cls, x: Matrix | None) -> _Weight:
        if x is None:
            return cls(None, 0, None)
        values, *scale = tensors_of(x)
        return cls(values.data_ptr(), _KINDS[values.dtype], scale[0].data_ptr() if scale else None)


class _Mlp(ctypes.Structure):
    _fields_ = [(name, _Weight) for name in MlpWeights._fields]

    @classmethod
    def of(cls, x: MlpWeights | None) -> _Mlp:
        return cls() if x is None else cls(*map(_Weight.of, x))


_NAMES = [field.name for field in fields(LayerWeights) if field.name not in ("dense", "experts")]


class _Layer(ctypes.Structure):
    _fields_ = [
        *[(name, _Weight) for name in _NAMES],
        ("dense", _Mlp),
        ("hidden", ctypes.c_int64),
        ("experts", ctypes.POINTER(_Mlp)),
    ]

    @classmethod
    def of(cls, x: LayerWeights) -> _Layer:
        weights = {name: _Weight.of(getattr(x, name)) for name in _NAMES}
        experts = (_Mlp * len(x.experts))(*map(_Mlp.of, x.experts)) if x.experts else None
        return cls(**weights, dense=_Mlp.of(x.dense), hidden=x.hidden, experts=experts)


_SIZES = (
    "D", "H", "groups", "key", "value", "value_start", "X", "N", "R", "V", "C", "Q",
    "E", "K", "F", "expert_groups", "kept_groups", "router_flags", "widest", "paged",
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
        self,
        shape: DecoderShape,
        rule: GateRule | None,
        layers: Sequence[LayerWeights],
        cos: Tensor,
        sin: Tensor,
        paged: bool = False,
    ) -> None:
        """`rule` is None where no layer has experts; cos, sin [positions, rotated pairs]. `paged`: chosen experts are
        to be read from disk ahead of their use."""
        _check_structures()
        self._tensors = [x for layer in layers for x in layer.tensors()]
        for x in self._tensors:
            assert x.is_contiguous(), "decoder weights"
        self.cos, self.sin = cos.float().contiguous(), sin.float().contiguous()
        self._layers = (_Layer * len(layers))(*map(_Layer.of, layers))
        self._shape = _Shape(
            D=layers[0].input_norm.numel(), **_attention_sizes(shape, layers[0]), **_expert_sizes(rule, layers),
            widest=max(layer.hidden for layer in layers), paged=paged,
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


def will_be_scattered(x: Tensor) -> None:
    """Tell the kernel that the pages of `x`, in a file's map, are used here and there: it reads nothing around them."""
    call("decoder_scattered", x.data_ptr(), x.numel() * x.element_size())


def will_be_used(x: Tensor) -> None:
    """Have the pages of `x`, in a file's map, read ahead of their use."""
    call("decoder_wanted", x.data_ptr(), x.numel() * x.element_size())


def linear(x_ND: Tensor, weight_WD: Matrix) -> Tensor:
    """fp32 x·weightᵀ -> [N, W]; as in `Decoder`, a token's result is its own."""
    out = x_ND.new_empty(len(x_ND), weight_WD.shape[0])
    weight = ctypes.byref(_Weight.of(weight_WD))
    call("decoder_linear", x_ND.data_ptr(), weight, *out.shape, x_ND.shape[1], out.data_ptr(), torch.get_num_threads())
    return out


def _attention_sizes(shape: DecoderShape, layer: LayerWeights) -> dict[str, float]:
    layout, latent = shape.layout, shape.latent
    sizes = {"H": shape.heads, "eps": shape.eps, "scale": shape.scale, "X": layout.width, "groups": layout.heads}
    sizes |= {"key": layout.key, "value": layout.value, "value_start": layout.value_start}
    if latent is None:
        return sizes | {"R": layout.key, "V": layout.value}
    sizes |= {"N": latent.nope, "R": latent.rope, "V": latent.value, "C": latent.rank, "latent_eps": latent.eps}
    return sizes | {"Q": 0 if layer.q_a is None else layer.q_a.shape[0]}


def _expert_sizes(rule: GateRule | None, layers: Sequence[LayerWeights]) -> dict[str, float]:
    experts = next((layer.experts for layer in layers if layer.experts), ())
    if rule is None or not experts:
        return {}
    flags = _SIGMOID * rule.sigmoid + _NORMALISE * rule.normalise + _BY_TWO_BEST * rule.by_two_best
    return {
        "E": len(experts), "K": rule.top_k, "F": experts[0].down.shape[1],
        "expert_groups": rule.groups, "kept_groups": rule.kept_groups, "router_flags": flags, "factor": rule.factor,
    }  # fmt: skip


@cache
def _check_structures() -> None:
    """The structures here and in C are as large: a field added on one side only would shift all that follow."""
    ours = [ctypes.sizeof(kind) for kind in (_Weight, _Layer, _Shape, _Cache)]
    theirs = (ctypes.c_int64 * len(ours))()
    call("decoder_sizes", ctypes.addressof(theirs))
    assert list(theirs) == ours, f"structures of decoder.py have {ours} bytes, those of step.h {list(theirs)}"
