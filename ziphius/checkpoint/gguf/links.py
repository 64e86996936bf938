"""What ties the published tensors of a network to those of its GGUF file: names, shapes, and how rows lie.

An architecture lists its links; reading and writing both follow that list. C latent, H heads, N no-position part,
V value head, K head dim.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Form(Protocol):
    """How a published tensor lies in a file, in as many tensors as it becomes there."""

    def to_file(self, tensor: Tensor) -> tuple[Tensor, ...]: ...

    def from_file(self, parts: tuple[Tensor, ...]) -> Tensor: ...


class _Same:
    """As it is."""

    def to_file(self, tensor: Tensor) -> tuple[Tensor, ...]:
        return (tensor,)

    def from_file(self, parts: tuple[Tensor, ...]) -> Tensor:
        return parts[0]


SAME = _Same()


@dataclass(frozen=True)
class Pairs:
    """[H·K, …] whose rows are rotated: row i of a head with row i + K/2 as published, with its neighbour in llama.cpp's
    `llama`. So the two halves of each head are interleaved there."""

    heads: int

    def to_file(self, tensor: Tensor) -> tuple[Tensor, ...]:
        return (tensor.unflatten(0, (self.heads, 2, -1)).transpose(1, 2).flatten(0, 2),)

    def from_file(self, parts: tuple[Tensor, ...]) -> Tensor:
        return parts[0].unflatten(0, (self.heads, -1, 2)).transpose(1, 2).flatten(0, 2)


@dataclass(frozen=True)
class LatentHalves:
    """kv_b_proj [H·(N+V), C]: the keys' half transposed to [H, C, N], as the absorbed form multiplies by it, and the
    values' half [H, V, C]."""

    heads: int
    nope_dim: int

    def to_file(self, tensor: Tensor) -> tuple[Tensor, ...]:
        up_HXC = tensor.unflatten(0, (self.heads, -1))
        return up_HXC[:, : self.nope_dim].transpose(1, 2), up_HXC[:, self.nope_dim :]

    def from_file(self, parts: tuple[Tensor, ...]) -> Tensor:
        key_HCN, value_HVC = parts
        return torch.cat([key_HCN.transpose(1, 2), value_HVC], dim=1).flatten(0, 1)


@dataclass(frozen=True)
class Link:
    """The published tensor of this name and `shape`, and the file's tensors that hold it.

    With `experts`, `{}` in `published` stands for an expert's number, and the file stacks them along a first axis.
    """

    published: str
    shape: tuple[int, ...]
    names: tuple[str, ...]
    form: Form = SAME
    experts: int | None = None

    def published_names(self) -> list[str]:
        """In the order of the stack."""
        return [self.published] if self.experts is None else [self.published.format(e) for e in range(self.experts)]

    def file_shapes(self) -> dict[str, tuple[int, ...]]:
        """GGUF name -> the shape it must have."""
        stack = () if self.experts is None else (self.experts,)
        parts = self.form.to_file(torch.empty(self.shape, device="meta"))
        return {name: (*stack, *part.shape) for name, part in zip(self.names, parts, strict=True)}


def plain(published: str, shape: tuple[int, ...], name: str) -> Link:
    """A tensor that lies in the file as published; `.weight` is added to both names where they have no ending."""
    ends = (".weight", ".bias")
    return Link(
        published if published.endswith(ends) else f"{published}.weight",
        shape,
        (name if name.endswith(ends) else f"{name}.weight",),
    )


def outer_links(vocab_size: int, hidden_size: int, tied: bool) -> Iterator[Link]:
    """Embedding, last norm and, where it is not the embedding again, the head."""
    yield plain("model.embed_tokens", (vocab_size, hidden_size), "token_embd")
    yield plain("model.norm", (hidden_size,), "output_norm")
    if not tied:
        yield plain("lm_head", (vocab_size, hidden_size), "output")


def mlp_links(layer: int, hidden: int, width: int, module: str = "mlp", end: str = "") -> Iterator[Link]:
    """Gate, up and down of the MLP `module` of `width` hidden units; `end` is its mark in the file's names."""
    for part, shape in (("gate", (width, hidden)), ("up", (width, hidden)), ("down", (hidden, width))):
        yield plain(f"model.layers.{layer}.{module}.{part}_proj", shape, f"blk.{layer}.ffn_{part}{end}")


def expert_links(layer: int, hidden: int, width: int, experts: int) -> Iterator[Link]:
    """Gate, up and down of a layer's routed experts, and the gate that chooses among them."""
    yield plain(f"model.layers.{layer}.mlp.gate", (experts, hidden), f"blk.{layer}.ffn_gate_inp")
    for link in mlp_links(layer, hidden, width, "mlp.experts.{}", "_exps"):
        yield Link(link.published, link.shape, link.names, experts=experts)
