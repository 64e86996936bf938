"""What a model's folder is made of, told without reading a weight. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from ziphius.ledger.folder import present_stages, read_json

ADAPTER_CONFIG, ADAPTER = "adapter_config.json", "adapter_model.safetensors"  # PEFT's names
_BASE = "base_model_name_or_path"
# What a network's answers depend on beside its weights; not every folder has all of them.
_ABOUT = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "chat_template.jinja", ADAPTER_CONFIG,
)  # fmt: skip


def model_folder(folder: Path) -> Path:
    """`folder` itself, or the last trained stage of a run. Raises ValueError for a run without one, or a file."""
    if folder.is_file():
        raise ValueError(f"{folder} is a file; give the folder that holds config.json and the weights")
    if (folder / "stages").is_dir():
        trained = [stage for stage in present_stages(folder) if (stage / "config.json").exists()]
        if not trained:
            raise ValueError(f"{folder}: no stage of this run has written a model yet")
        return trained[-1]
    return folder


def adapter_base(folder: Path) -> Path | None:
    """The model that the adapter in `folder` sits on; None for a folder that holds no adapter.

    A base that has moved is looked for beside the adapter, where a copied run has it. Raises ValueError where it is
    in neither place.
    """
    about = read_json(folder / ADAPTER_CONFIG)
    if about is None:
        return None
    named = Path(str(about.get(_BASE) or ""))
    for base in (named, folder.parent / named.name):
        if (base / "config.json").is_file() and base.resolve() != folder.resolve():
            return base
    raise ValueError(
        f"{folder} is an adapter of {named}, which is not there; put that model back, or write its new place into "
        f"{_BASE} of {ADAPTER_CONFIG}"
    )


def model_files(folder: Path) -> list[Path]:
    """The files that the network of `folder` and its tokenizer come from, an adapter's base included."""
    base = adapter_base(folder)
    mine = [path for name in _ABOUT if (path := folder / name).is_file()]
    mine += sorted([*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json")])
    return mine if base is None else [*mine, *model_files(base)]
