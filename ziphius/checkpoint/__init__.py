"""Hugging Face folders in and out."""

from ziphius.checkpoint.errors import CheckpointError
from ziphius.checkpoint.folder import (
    MAX_SHARD_BYTES,
    default_generation_config,
    load_config,
    load_model,
    save_model,
    save_state,
)

__all__ = [
    "MAX_SHARD_BYTES",
    "CheckpointError",
    "default_generation_config",
    "load_config",
    "load_model",
    "save_model",
    "save_state",
]
