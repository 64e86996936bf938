"""Activation recomputation: what the backward pass needs is computed again instead of kept.

`full` keeps what enters a block. `selective` also keeps the results that cost the most: those of matrix products and of
attention, and computes norms, rotations, activations, casts and gathers again; likewise MLA's up-projections, whose
results are large for what they cost. V3 §3.2.3 recomputes RMSNorm and the up-projections, §3.3.3 SwiGLU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, TypeVar

from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

Call = TypeVar("Call", bound=Callable)

_GROUPED = "aten::_grouped_mm"  # experts on a card; elsewhere they are bmm, which is always computed again
_PRODUCTS = {"aten::mm": 0, "aten::addmm": 1, _GROUPED: 0}  # and which argument is the left factor
_ATTENTION = {
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "ziphius::segment_attention",
}


def recomputed(call: Call, kind: Literal["selective", "full"], width: int) -> Call:
    """`call` with the same result and gradients, keeping less; `width` is what a block takes and gives (D).

    Nothing in it may draw random numbers.
    """
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    if kind == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, partial(_policy, width))
    return partial(checkpoint, call, **options)  # type: ignore[return-value]


def _policy(width: int, _: Any, operator: Any, *args: Any, **__: Any) -> CheckpointPolicy:
    name = operator._schema.name
    kept = name in _ATTENTION or (name in _PRODUCTS and not _is_spared(width, name, args))
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def _is_spared(width: int, name: str, args: Sequence[Any]) -> bool:
    """Whether a product is an up-projection, from a latent narrower than a block to something wider; or that which ends
    the experts, K rows a token, of which no gradient needs the values: nobody will compute it again."""
    first = _PRODUCTS[name]
    inner, outer = (factor.shape[-1] for factor in args[first : first + 2])
    return outer == width if name == _GROUPED else inner < width < outer
