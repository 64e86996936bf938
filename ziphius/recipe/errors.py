"""What a recipe that cannot be run says. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DEVICE = r"^(auto|cpu|cuda(:\d+)?)$"  # how a recipe and `--device` call a place
_KINDS = "'tokenizer', 'pretrain', 'sft' and 'grpo'"


class RecipeError(ValueError):
    """The recipe cannot be run; the message names the key and the mend."""


def what_is_wrong(error: Mapping[str, Any]) -> str:
    """One of pydantic's errors as a sentence with the key, what is wrong with it and the mend."""
    key = _full_key(error["loc"])
    match error["type"]:
        case "extra_forbidden":
            return f"{key} is no setting here; remove it or mend its spelling"
        case "missing":
            return f"{key} is missing; add it"
        case "union_tag_not_found":
            return f"{key}.kind is missing; add one of {_KINDS}"
        case "union_tag_invalid":
            return f"{key}.kind is {error['ctx']['tag']!r}; it must be one of {_KINDS}"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "string_pattern_mismatch":
        message = "a name is made of letters, digits, '_', '-' and '.'"
        if error["ctx"]["pattern"] == DEVICE:
            message = "it must be auto, cpu, cuda, or cuda:NUMBER for one of several GPUs"
    shown = f" (got {error['input']!r})" if isinstance(error["input"], (str, int, float, bool)) else ""
    return f"{key}: {message}{shown}" if key else f"{message}{shown}"


def _full_key(loc: tuple[Any, ...]) -> str:
    """The key as it stands in the file: pydantic puts the kind of a stage after its name, and marks a table's keys."""
    parts = [str(part) for part in loc if part != "[key]"]
    if len(parts) > 2 and parts[0] == "stages":
        del parts[2]
    return ".".join(parts)
