"""How the blocks of a model run in training: as they are, computed again in the backward, compiled, or both."""

from __future__ import annotations

from types import MethodType
from typing import Literal, Protocol

import torch
from torch import Tensor

from ziphius.model.cache import StepCache
from ziphius.model.experts import RouterStats
from ziphius.model.transformer import Block, Transformer
from ziphius.ops.backend import has_triton
from ziphius.ops.sorted_experts import groups_without_asking
from ziphius.train.place import Place
from ziphius.train.speed.recompute import recomputed


class BlockCall(Protocol):
    """A block as a function of tensors: its result, and what its gate saw (loads and balance losses, one or none)."""

    def __call__(
        self, block: Block, x: Tensor, cos: Tensor, sin: Tensor, segments: Tensor | None, valid: Tensor | None, /
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]: ...


# Below so many parameters a stage is over before a minute of compiling has come back
_WORTH_COMPILING = 50_000_000


def compiling_pays(model: Transformer, place: Place) -> bool:
    """Whether a stage on `place` gains by compiled blocks: on a GPU, unless the network is small."""
    return place.on_gpu and sum(p.numel() for p in model.parameters()) >= _WORTH_COMPILING


def set_speed(model: Transformer, recompute: Literal["none", "selective", "full"], compiled: bool) -> None:
    """Let each block of `model` run so wherever gradients are wanted; sampling and evaluation take it as it is.

    Compiled, all blocks of one shape share one program, made when the first of them first runs, and the operations
    take the backend that fits their tensors.
    """
    call: BlockCall = run_block
    if recompute != "none":
        call = recomputed(call, recompute, model.config.hidden_size)
    if compiled:
        for constant in (has_triton, groups_without_asking):  # here and not as decorators, which load the compiler
            torch.compiler.assume_constant_result(constant)
        call = torch.compile(call)
    if call is run_block:
        return
    for block in model.modules():
        if isinstance(block, Block):
            # A method and no closure: of a copied model it calls the copied block
            block.forward = MethodType(_Training(call), block)  # type: ignore[method-assign]


def run_block(
    block: Block, x: Tensor, cos: Tensor, sin: Tensor, segments: Tensor | None, valid: Tensor | None
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The block's own forward pass, its gate's statistics in a list of their own: a second run adds to none."""
    stats = RouterStats(valid)
    out = Block.forward(block, x, cos, sin, segments, None, stats)
    return out, stats.loads, stats.balance_losses


class _Training:
    """Stands for `Block.forward`."""

    def __init__(self, call: BlockCall) -> None:
        self.call = call

    def __call__(
        self,
        block: Block,
        x_BTD: Tensor,
        cos: Tensor,
        sin: Tensor,
        segments_BT: Tensor | None = None,
        cache: StepCache | None = None,
        stats: RouterStats | None = None,
    ) -> Tensor:
        if cache is not None or stats is None or not torch.is_grad_enabled():
            return Block.forward(block, x_BTD, cos, sin, segments_BT, cache, stats)
        out, loads, balance_losses = self.call(block, x_BTD, cos, sin, segments_BT, stats.valid_BT)
        stats.loads += loads
        stats.balance_losses += balance_losses
        return out
