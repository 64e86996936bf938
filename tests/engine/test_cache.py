import pytest
import torch

from ziphius.engine.cache import SlabCache
from ziphius.model.presets import ladder

CONFIG = ladder(2, 64)
WIDTH = CONFIG.kv_lora_rank + CONFIG.qk_rope_head_dim


def test_positions_and_masks_of_ragged_rows():
    cache = SlabCache(CONFIG, torch.tensor([0, 2]), 6, torch.float32)
    assert cache.advance(3).tolist() == [[0, 1, 2], [0, 0, 0]]
    seen = (cache.mask_BTS == 0).int()
    assert seen[..., 3:].sum() == 0  # columns not yet written
    seen = seen[..., :3].tolist()
    assert seen[0] == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert seen[1] == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]  # padding sees only itself, and nobody sees padding
    assert cache.advance(1).tolist() == [[3], [1]]
    assert (cache.mask_BTS == 0)[..., :4].int().tolist() == [[[1, 1, 1, 1]], [[0, 0, 1, 1]]]


def test_update_keeps_and_select_reorders():
    cache = SlabCache(CONFIG, torch.tensor([0, 1]), 4, torch.float32)
    entries = torch.randn(2, 3, WIDTH)
    rank = CONFIG.kv_lora_rank
    cache.advance(2)
    assert torch.equal(cache.update(1, entries[:, :2, :rank], entries[:, :2, rank:])[:, :2], entries[:, :2])
    cache.advance(1)
    assert torch.equal(cache.update(1, entries[:, 2:, :rank], entries[:, 2:, rank:])[:, :3], entries)
    assert cache.memory[0].abs().sum() == 0
    cache.select(torch.tensor([1, 1, 0]))
    assert torch.equal(cache.memory[1, :, :3], entries[[1, 1, 0]])
    assert cache.padding.tolist() == [1, 1, 0]


def test_full():
    cache = SlabCache(CONFIG, torch.tensor([0]), 3, torch.float32)
    cache.advance(3)
    with pytest.raises(ValueError, match="holds 3 tokens a row, 4 were asked for"):
        cache.advance(1)
