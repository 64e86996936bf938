"""A tokenizer's files in a model folder, read and written so that nothing of them is lost."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ziphius.disk.write import write_text

CONFIG, NAMED, TEMPLATE = "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"
TEMPLATES = "additional_chat_templates"  # a folder of named ones, as transformers writes them


@dataclass(frozen=True)
class Files:
    """What stands beside `tokenizer.json`. Empty where a file is missing.

    `config`, `named`, `generation` and `model` are tokenizer_config.json (without its chat template),
    special_tokens_map.json, generation_config.json and config.json. `templates` has chat templates by name.
    """

    config: dict[str, Any] = field(default_factory=dict)
    named: dict[str, Any] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    templates: dict[str, str] = field(default_factory=dict)


def read_files(folder: Path) -> Files:
    """ValueError names a file that is no JSON object."""
    config = _object(folder / CONFIG)
    templates = _templates(config.pop("chat_template", None))
    if (folder / TEMPLATE).is_file():
        templates["default"] = (folder / TEMPLATE).read_text(encoding="utf-8")
    for path in sorted((folder / TEMPLATES).glob("*.jinja")):
        templates[path.stem] = path.read_text(encoding="utf-8")
    generation, model = _object(folder / "generation_config.json"), _object(folder / "config.json")
    return Files(config, _object(folder / NAMED), generation, model, templates)


def write_files(folder: Path, tokenizer: str, files: Files) -> None:
    """Writes `tokenizer.json`, tokenizer_config.json with the chat templates inside and, where there was one,
    special_tokens_map.json, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = dict(files.config)
    if set(files.templates) == {"default"}:
        config["chat_template"] = files.templates["default"]
    elif files.templates:
        config["chat_template"] = [{"name": name, "template": text} for name, text in files.templates.items()]
    write_text(folder / "tokenizer.json", tokenizer)
    write_text(folder / CONFIG, json.dumps(config, ensure_ascii=False, indent=2))
    if files.named:
        write_text(folder / NAMED, json.dumps(files.named, ensure_ascii=False, indent=2))


def _object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is not a JSON object")
    return found


def _templates(said: Any) -> dict[str, str]:
    """One template, or a list of named ones."""
    if isinstance(said, str):
        return {"default": said}
    rows = said if isinstance(said, list) else []
    return {row["name"]: row["template"] for row in rows if isinstance(row, dict) and {"name", "template"} <= set(row)}
