import torch

from ziphius.engine.cache import PagedMemory, PlacedCache
from ziphius.model.presets import ladder
from ziphius.ops.placement import Placement

CONFIG = ladder(2, 64)
WIDTH = CONFIG.kv_lora_rank + CONFIG.qk_rope_head_dim


def test_a_step_stores_its_entries_where_the_tables_say():
    memory = PagedMemory(CONFIG, blocks=3, block_size=4, dtype=torch.float32)
    tables = torch.tensor([[2, 0], [1, 0]], dtype=torch.int32)
    placement = Placement.of(torch.tensor([0, 0, 1], dtype=torch.int32), torch.tensor([3, 4, 2]), tables, 4)
    assert placement.slots_N.tolist() == [2 * 4 + 3, 0, 1 * 4 + 2]
    entries = torch.randn(3, WIDTH)
    PlacedCache(memory, placement).attend(1, torch.randn(3, 2, WIDTH), entries, 1.0)
    assert torch.equal(memory.data[1, placement.slots_N], entries)
    assert memory.data[0].abs().sum() == 0
    assert memory.data[1].abs().sum(-1).count_nonzero() == 3


def test_blocks_are_copied_and_cleared_in_every_layer():
    memory = PagedMemory(CONFIG, blocks=3, block_size=4, dtype=torch.float32)
    memory.data[:, :4] = torch.randn(len(memory.data), 4, WIDTH)
    memory.copy_blocks([0, 0], [1, 2])
    assert torch.equal(memory.data[:, 4:8], memory.data[:, :4])
    assert torch.equal(memory.data[:, 8:12], memory.data[:, :4])
    memory.clear_blocks([0, 2])
    assert memory.data[:, :4].abs().sum() == memory.data[:, 8:].abs().sum() == 0 < memory.data[:, 4:8].abs().sum()


def test_there_is_room_for_the_prediction_modules():
    assert len(PagedMemory(CONFIG, 1, 4, torch.float32).data) == CONFIG.num_hidden_layers + 1
