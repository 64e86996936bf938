"""Naive and absorbed attention agree, and packed samples do not see each other."""

import pytest
import torch
from torch import Tensor

from ziphius import ops
from ziphius.model.config import CacheLayout

from .variants import FAMILIES, GROUPED, network, tokens_of, v3, yarn


class GrowingCache:
    """The `StepCache` protocol in its simplest form: rows that grow, every query sees what came before it."""

    def __init__(self, rows: int, layout: CacheLayout) -> None:
        self.batch, self.layout = rows, layout
        self.rows: dict[int, Tensor] = {}

    def attend(self, layer: int, q_NHK: Tensor, entries_NX: Tensor, scale: float) -> Tensor:
        new = entries_NX.unflatten(0, (self.batch, -1))
        seen = self.rows[layer] = torch.cat([self.rows[layer], new], dim=1) if layer in self.rows else new
        G, K, V, start = self.layout.heads, self.layout.key, self.layout.value, self.layout.value_start
        q_BTGHK = q_NHK.unflatten(0, (self.batch, -1)).unflatten(2, (G, -1))
        keys, values = seen[..., : G * K].unflatten(-1, (G, K)), seen[..., start : start + G * V].unflatten(-1, (G, V))
        blocked = torch.full((new.shape[1], seen.shape[1]), float("-inf")).triu_(seen.shape[1] - new.shape[1] + 1)
        scores = torch.einsum("btghk,bsgk->bghts", q_BTGHK, keys) * scale + blocked
        return torch.einsum("bghts,bsgv->btghv", scores.softmax(-1), values).flatten(0, 1).flatten(1, 2)


def in_steps(model, tokens, sizes):
    cache, start, parts = GrowingCache(tokens.shape[0], model.config.cache_layout), 0, []
    for size in sizes:
        positions = torch.arange(start, start + size).expand(tokens.shape[0], -1)
        parts.append(model.hidden(tokens[:, start : start + size], positions, cache=cache))
        start += size
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("name", ["V3, YaRN as published", "V2", "V2-Lite", "Moonlight", "a large eps", *GROUPED])
@pytest.mark.parametrize("sizes", [[20], [1] * 20, [7, 1, 1, 4, 7]], ids=["at once", "one by one", "chunks"])
@torch.no_grad()
def test_decoding_equals_training(name, sizes):
    model = network(FAMILIES[name])
    tokens = tokens_of(model.config, (2, 20))
    torch.testing.assert_close(in_steps(model, tokens, sizes), model.hidden(tokens), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_cache_holds_latents_only():
    model = network(v3())
    cache = GrowingCache(1, model.config.cache_layout)
    tokens = tokens_of(model.config, (1, 5))
    model.hidden(tokens, torch.arange(5).unsqueeze(0), cache=cache)
    width = model.config.kv_lora_rank + model.config.qk_rope_head_dim
    assert {tuple(rows.shape) for rows in cache.rows.values()} == {(1, 5, width)}
    assert len(cache.rows) == model.config.num_hidden_layers


@pytest.mark.parametrize("lengths", [[5, 9], [1, 1, 12], [14]])
@pytest.mark.parametrize("backend", ["auto", "torch", "reference"])
@torch.no_grad()
def test_packed_samples_equal_separate_ones(lengths, backend):
    model = network(v3(rope_scaling=yarn(mscale=1.0, mscale_all_dim=1.0)))
    samples = [tokens_of(model.config, (1, length), seed) for seed, length in enumerate(lengths)]
    packed = torch.cat(samples, dim=1)
    segments = torch.tensor([[i for i, length in enumerate(lengths) for _ in range(length)]])
    positions = torch.tensor([[t for length in lengths for t in range(length)]])
    with ops.backend(backend):
        joint = model.hidden(packed, positions, segments)
        alone = torch.cat([model.hidden(sample) for sample in samples], dim=1)
    torch.testing.assert_close(joint, alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_packed_samples_with_padding():
    model = network(v3())
    sample = tokens_of(model.config, (1, 6))
    padded = torch.cat([sample, torch.zeros(1, 4, dtype=torch.int64)], dim=1)
    segments = torch.tensor([[0] * 6 + [-1] * 4])
    positions = torch.tensor([[*range(6), 0, 1, 2, 3]])
    joint = model.hidden(padded, positions, segments)
    torch.testing.assert_close(joint[:, :6], model.hidden(sample), rtol=1e-4, atol=1e-5)
    assert torch.isfinite(joint).all()


@torch.no_grad()
def test_shifting_all_positions_changes_nothing():
    model = network(v3(rope_scaling=yarn(mscale=1.0, mscale_all_dim=1.0)))
    tokens = tokens_of(model.config, (1, 12))
    shifted = model.hidden(tokens, torch.arange(100, 112).unsqueeze(0))
    torch.testing.assert_close(shifted, model.hidden(tokens), rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_the_future_does_not_reach_back():
    model = network(v3())
    tokens = tokens_of(model.config, (1, 12))
    other = tokens.clone()
    other[0, 7] = (other[0, 7] + 1) % model.config.vocab_size
    left, right = model.hidden(tokens), model.hidden(other)
    assert torch.equal(left[:, :7], right[:, :7])
    assert not torch.equal(left[:, 7], right[:, 7])
