"""How many blocks an engine gets. Imports no torch."""

from __future__ import annotations

from ziphius.disk.memory import free_gib
from ziphius.engine.settings import EngineSettings
from ziphius.model.config import ModelConfig

_GIB = 2**30
_DEFAULT_GIB = 1.0


def block_bytes(config: ModelConfig, block_size: int, element_bytes: int) -> int:
    """Bytes of a block of every layer, the prediction modules' included."""
    layers = config.num_hidden_layers + config.num_nextn_predict_layers
    return layers * block_size * config.cache_layout.width * element_bytes


def pool_blocks(settings: EngineSettings, config: ModelConfig, element_bytes: int) -> int:
    """Blocks of the pool. Raises ValueError where the memory holds none."""
    if settings.blocks is not None:
        return settings.blocks
    per_block = block_bytes(config, settings.block_size, element_bytes)
    given = _DEFAULT_GIB if settings.memory_gib is None else settings.memory_gib
    blocks = int(given * _GIB) // per_block
    if not blocks:
        raise ValueError(
            f"memory_gib ({given}) holds no block of {settings.block_size} tokens, which takes {per_block} bytes"
        )
    if settings.memory_gib is not None:
        return blocks
    return min(blocks, settings.max_rows * -(-config.max_position_embeddings // settings.block_size))


def refuse_too_large(blocks: int, per_block: int) -> None:
    """Raise ValueError where this machine's memory, of which a part is free, does not hold the pool."""
    wanted, free = blocks * per_block / _GIB, free_gib()
    if wanted > free:
        raise ValueError(
            f"the cache would take {wanted:,.2f} GiB and {free:,.2f} GiB of memory are free; "
            "lower memory_gib (or blocks)"
        )
