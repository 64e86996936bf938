"""An adapter and its base as one model's folder."""

from __future__ import annotations

import shutil
from pathlib import Path

from ziphius.checkpoint.device import stored_dtype
from ziphius.checkpoint.errors import CheckpointError
from ziphius.checkpoint.folder import load_config, load_model, save_model
from ziphius.checkpoint.shards import weight_files
from ziphius.ledger.folder import read_json
from ziphius.ledger.model import ADAPTER_CONFIG, model_folder

_TEXT = ("tokenizer*", "special_tokens_map.json", "chat_template.jinja", "vocab*", "merges.txt", "added_tokens.json")


def merge_adapter(folder: Path, out: Path) -> None:
    """Write the model that the adapter in `folder` makes of its base to `out`, in the base's own format, with the
    tokenizer. Raises CheckpointError where `folder` is none, or `out` holds a model."""
    folder = model_folder(folder)
    if not (folder / ADAPTER_CONFIG).exists():
        raise CheckpointError(f"{folder} is no adapter (it has no {ADAPTER_CONFIG}), so there is nothing to merge")
    if weight_files(out):
        raise CheckpointError(f"{out} holds a model already; name another folder")
    model = load_model(folder, stored_dtype(load_config(folder)))
    save_model(model, out, generation_config=read_json(folder / "generation_config.json"))
    for pattern in _TEXT:
        for path in folder.glob(pattern):
            shutil.copy(path, out)
