"""What a model folder, and the run around it, say about serving it. Imports no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ziphius.ledger.folder import read_json

_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def sampling_defaults(folder: Path) -> dict[str, Any]:
    """The sampling that the folder's generation_config.json asks for; temperature 0 where it asks for none."""
    path = folder / "generation_config.json"
    if not path.is_file():
        return {}
    config = json.loads(path.read_text())
    if config.get("do_sample") is False:
        return {"temperature": 0.0}
    return {name: config[name] for name in _SAMPLING if config.get(name) is not None}


def run_of(folder: Path) -> Path | None:
    """The run that `folder` is a stage of."""
    folder = folder.resolve()
    return folder.parent.parent if folder.parent.name == "stages" else None


def machine_price(folder: Path) -> float:
    """Dollars per hour in the recipe of the folder's run; 0 where there is none."""
    run = run_of(folder)
    recipe = read_json(run / "recipe.json") if run else None
    return float(recipe.get("price", {}).get("dollars_per_hour", 0.0)) if recipe else 0.0
