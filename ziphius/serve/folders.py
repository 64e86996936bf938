"""What a model folder, and the run around it, say about serving it. Imports no torch."""

from __future__ import annotations

import json
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ziphius.ledger.folder import evaluations, read_json

EXAMPLES = "examples.json"
_MOST_EXAMPLES, _LONGEST_EXAMPLE = 4, 2000
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


def example_questions(folder: Path) -> list[str]:
    """Questions to begin with, as the chat page offers them: those of the folder's examples.json, a list of strings;
    without one, what the folder's evaluation asked (a task's questions in turns); [] where there is neither.

    Raises ValueError for an examples.json that is no list of strings.
    """
    path = folder / EXAMPLES
    if path.is_file():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: this is no JSON ({error}); write a list of questions, or remove it") from None
        if not (isinstance(found, list) and all(isinstance(question, str) for question in found)):
            raise ValueError(f'{path}: a list of questions is wanted, such as ["How deep do whales dive?"]')
    else:
        asked = [result.get("examples", []) for result in evaluations(folder)]
        turns = (example.get("prompt") for row in zip_longest(*asked, fillvalue={}) for example in row)
        found = [question for question in turns if isinstance(question, str)]
    fitting = [question.strip() for question in found if question.strip() and len(question) <= _LONGEST_EXAMPLE]
    return list(dict.fromkeys(fitting))[:_MOST_EXAMPLES]
