"""A device for tests, 'elsewhere': it computes on the processor and refuses to mix with the processor's own tensors.

A tensor that code forgot to move then fails here, and not first on somebody's GPU. Its tensors are PyTorch's own, of
the dispatch key that PyTorch keeps for other people's devices (PrivateUse1, in Python since torch 2.9). Their memory is
the processor's, handed over by DLPack with another device written on it, so that views, in-place operations, `.data`,
autograd and optimisers are the real ones. Whatever reaches the device runs on the same memory as the processor's
operation, with CUDA's rules: one device for all tensors but those without dimensions, none of the processor's
generators, and CUDA's lists of what autocast rounds and what it widens. Stricter than CUDA, it takes no index from the
processor: there that is a hidden copy, for which the device waits.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "elsewhere"
_DL_CPU, _DL_ELSEWHERE = 1, 12  # DLDeviceType: kDLCPU, kDLExtDev

# What may meet tensors of both sides: it is how they come and go.
_COPIES = {"aten::copy_", "aten::_copy_from", "aten::_copy_from_and_resize", "aten::_to_copy"}

# torch/csrc's lists for CUDA, as far as networks use them.
_ROUNDED = ("matmul", "mm", "bmm", "addmm", "addbmm", "baddbmm", "linear", "scaled_dot_product_attention")
_WIDENED = (
    "softmax.int", "log_softmax.int", "exp", "log", "rsqrt", "reciprocal", "pow.Tensor_Scalar", "cumsum", "logsumexp",
    "sum", "sum.dim_IntList", "prod", "norm.Scalar", "nll_loss", "binary_cross_entropy_with_logits", "softplus",
)  # fmt: skip


class _Device(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int32), ("number", ctypes.c_int32))


class _DLTensor(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("device", _Device))  # the rest is of no concern here


_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)


def _with_device(tensor: Tensor, kind: int) -> Tensor:
    """A tensor on the same memory, which it keeps, of the other device."""
    capsule = torch._C._to_dlpack(tensor)
    device = _DLTensor.from_address(_pointer(capsule, b"dltensor")).device
    device.type, device.number = kind, 0
    return torch._C._from_dlpack(capsule)


def _is_elsewhere(value: object) -> bool:
    return isinstance(value, Tensor) and value.device.type == NAME


def _run(op: Any, *args: Any, **kwargs: Any) -> Any:
    """The processor's operation on the memory of the device's tensors."""
    name = op._schema.name
    inputs = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
    away = any(map(_is_elsewhere, inputs))
    if name not in _COPIES and (away or "device" in kwargs):
        strangers = [x for x in inputs if not _is_elsewhere(x) and x.dim()]
        if strangers and away:
            shape = tuple(strangers[0].shape)
            raise RuntimeError(f"{name}: all tensors must be on {NAME}:0, but one {shape} is on {strangers[0].device}")
        if kwargs.get("generator") is not None:
            raise RuntimeError(f"{name}: expected a generator of {NAME}, not of the CPU")
    target = kwargs.get("device")
    placed = away if target is None else torch.device(target).type == NAME
    if target is not None:
        kwargs = kwargs | {"device": "cpu"}
    kwargs.pop("pin_memory", None)
    known: dict[int, tuple[Tensor, Tensor]] = {}  # by the processor's tensor, which is kept so that its id stays its

    def lend(tensor: Tensor) -> Tensor:
        if not _is_elsewhere(tensor):
            return tensor
        # An empty one may be there to be given its size by the operation, which borrowed memory cannot be.
        ours = _with_device(tensor, _DL_CPU) if tensor.numel() else torch.empty(tensor.shape, dtype=tensor.dtype)
        known[id(ours)] = tensor, ours
        return ours

    args = tuple(_as_declared(value, argument) for value, argument in zip(args, op._schema.arguments, strict=False))
    args, kwargs = tree_map_only(Tensor, lend, (args, kwargs))
    with torch._C._AutoDispatchBelowAutograd():
        results = op(*args, **kwargs)
    return tree_map_only(Tensor, lambda x: _give_back(x, known, placed), results)


def _as_declared(value: Any, argument: Any) -> Any:
    """A number that stands for a tensor reaches Python as a number; the operation wants it as a tensor."""
    number = isinstance(value, int | float) and argument.type.kind() == "TensorType"
    return torch.tensor(value) if number else value


def _give_back(result: Tensor, known: dict[int, tuple[Tensor, Tensor]], placed: bool) -> Tensor:
    if id(result) not in known:
        return _with_device(result, _DL_ELSEWHERE) if placed else result
    before = known[id(result)][0]  # worked in place
    if before.shape != result.shape:
        before.data = _with_device(result, _DL_ELSEWHERE)
    return before


def _copy(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    ours, theirs = (_with_device(x, _DL_CPU) if _is_elsewhere(x) else x for x in (source, target))
    with torch._C._AutoDispatchBelowAutograd():
        theirs.copy_(ours)
    return target


def _deepcopy(tensor: Tensor, memo: dict[int, Any], of_torch: Callable[..., Tensor] = Tensor.__deepcopy__) -> Tensor:
    """torch's own copies the storage, which takes an allocator in C++."""
    if not _is_elsewhere(tensor):
        return of_torch(tensor, memo)
    if id(tensor) not in memo:
        memo[id(tensor)] = tensor.detach().clone().requires_grad_(tensor.requires_grad)
    return memo[id(tensor)]


def _cast(op: Any, dtype: Callable[[], torch.dtype]) -> Callable[..., Any]:
    """`op` with its floating-point tensors in `dtype()`, as autocast has it."""
    off = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def convert(x: Tensor) -> Tensor:
        return x.to(dtype()) if x.is_floating_point() and x.dtype != torch.float64 and _is_elsewhere(x) else x

    def run(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = tree_map_only(Tensor, convert, (args, kwargs))
        with torch._C._ExcludeDispatchKeyGuard(off):
            return op(*args, **kwargs)

    return run


class _Module:
    """What `torch.elsewhere` offers."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        pass

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


def _libraries() -> Iterator[torch.library.Library]:
    every = torch.library.Library("_", "IMPL")
    every.fallback(_run, "PrivateUse1")
    every.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    yield every
    aten = torch.library.Library("aten", "IMPL")
    aten.impl("_copy_from", _copy, "PrivateUse1")
    for names, dtype in ((_ROUNDED, lambda: torch.get_autocast_dtype(NAME)), (_WIDENED, lambda: torch.float32)):
        for name in names:
            base, _, overload = name.partition(".")
            op = getattr(getattr(torch.ops.aten, base), overload or "default")
            aten.impl(name, _cast(op, dtype), "AutocastPrivateUse1")
    yield aten


_kept: list[torch.library.Library] = []  # they are in force for as long as somebody holds them


def elsewhere() -> torch.device:
    """The device, made known to PyTorch on the first call in a process, which must come before any backward pass."""
    if not _kept:
        _setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
        _kept.extend(_libraries())
        Tensor.__deepcopy__ = _deepcopy  # type: ignore[method-assign]
    return torch.device(NAME, 0)
