"""What a stage's result depends on, and nothing else: by this its folder is found again. Imports no torch.

Left out on purpose: how often a state is saved, which blocks are recomputed or compiled, prices, names, and everything
about evaluation, which has an identity of its own. The contents of files stand beside (`Identity.files`): a file may
change where a stage has not read it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from ziphius.ledger.folder import read_json
from ziphius.recipe.schema import GRPOStage, PretrainStage, Recipe, SFTStage, Stage, TokenizerStage, fingerprint
from ziphius.tasks.registry import family_files

if TYPE_CHECKING:
    from ziphius.recipe.digests import Digests

_ABSENT = object()
# Settings that came after the first stages were made, at what had been before: those stages are found all the same.
_AS_EVER: tuple[tuple[str, Any], ...] = (("too_long", "drop"), ("from", None), ("dtype", None), ("lora", None))


@dataclass(frozen=True)
class Identity:
    """`settings` that a result depends on, and the digests of the `files` read for it, in the order of reading."""

    settings: dict[str, Any]
    files: dict[str, str] = field(default_factory=dict)

    @property
    def settings_print(self) -> str:
        return fingerprint(self.settings)

    @property
    def print(self) -> str:
        """A short stable name of the whole; where a file lies does not matter."""
        return fingerprint(self.settings, list(self.files.values()))

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"print": self.print, "key": self.settings_print[:6]}

    @classmethod
    def read(cls, path: Path) -> Identity | None:
        """What `as_dict` left in a file; None where there is none."""
        found = read_json(path)
        return cls(found["settings"], found["files"]) if found else None


def start_identity(recipe: Recipe, digests: Digests) -> Identity:
    """Of the folder that a recipe begins from: its files, and what the recipe has otherwise."""
    start = {"dtype": recipe.model.stored, "overrides": recipe.model.overrides}
    return Identity({"start": start}, digests.of([str(path) for path in recipe.model.start_files()]))


def stage_identity(recipe: Recipe, stage: Stage, previous: str, thinking: bool, digests: Digests) -> Identity:
    """Of a stage that begins from `previous`: the digest of the tokenizer, or the print of a stage or of the start."""
    settings: dict[str, Any] = {"stage": _what_is_learned(stage), "seed": recipe.seed, "previous": previous}
    paths: list[str] = []
    tasks: list[str] = []
    match stage:
        case TokenizerStage() | PretrainStage():
            corpora = {name: corpus for name, corpus in recipe.corpora.items() if corpus.weight}
            settings["corpora"] = {name: _without_path(corpus) for name, corpus in corpora.items()}
            paths = [path for corpus in corpora.values() for path in corpus.files()]
            tasks = [corpus.task for corpus in corpora.values() if corpus.task]
            if isinstance(stage, PretrainStage):
                if recipe.model.from_ is None:
                    settings["model"] = _without_path(recipe.model)
                tasks += [stage.probe] if stage.probe else []
        case SFTStage():
            settings["thinking"] = thinking
            paths = stage.files()
            tasks = [stage.task] if stage.task else []
        case GRPOStage():
            settings["thinking"] = thinking
            tasks = [task for task, weight in stage.tasks.items() if weight]
    settings["tasks"] = _tasks(recipe, tasks)
    return Identity(settings, digests.of([*paths, *_task_files(recipe, tasks)]))


def evaluation_identity(recipe: Recipe, stage: Identity, thinking: bool, digests: Digests) -> Identity:
    """Of the evaluation of a stage."""
    asked = recipe.evaluation
    settings = {
        "evaluation": asked.model_dump(mode="json", exclude={"show"}),
        "tasks": _tasks(recipe, asked.tasks),
        "seed": recipe.seed,
        "thinking": thinking,
        "stage": stage.print,
    }
    return Identity(settings, digests.of(_task_files(recipe, asked.tasks)))


def differences(old: Identity, new: Identity) -> str:
    """What changed from one to the other, in words: `stage.train.steps 90 → 80, chats.jsonl changed`."""
    changed = [_change(*leaf) for leaf in _leaves(old.settings, new.settings)]
    before, after = (list(identity.files.values()) for identity in (old, new))
    if not changed and before != after:
        names = [Path(path).name for path, digest in new.files.items() if digest not in before]
        changed = [f"{name} changed" for name in names] or ["fewer files"]
    more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
    return ", ".join(changed[:4]) + more


def _what_is_learned(stage: Stage) -> dict[str, Any]:
    settings = _without_path(stage)
    settings.pop("from", None)  # it is in what the stage begins from
    for manner in ("save_every", "recompute", "compile") if "train" in settings else ():
        del settings["train"][manner]
    return settings


def _without_path(settings: BaseModel) -> dict[str, Any]:
    """A file counts by what is in it, not by where it lies; a later setting only where it is not what always was."""
    return _without_as_ever(settings.model_dump(mode="json", exclude={"path"}))


def _without_as_ever(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_as_ever(value) if isinstance(value, dict) else value
        for key, value in settings.items()
        if (key, value) not in _AS_EVER
    }


def _tasks(recipe: Recipe, names: Sequence[str]) -> dict[str, Any]:
    return {name: recipe.tasks[name].model_dump(mode="json", exclude={"settings": {"path"}}) for name in names}


def _task_files(recipe: Recipe, tasks: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(path for task in tasks for path in family_files(recipe.tasks[task].settings)))


def _leaves(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in dict.fromkeys([*old, *new]):
            yield from _leaves(old.get(name, _ABSENT), new.get(name, _ABSENT), f"{key}.{name}" if key else name)
    elif old != new:
        yield key.removeprefix("stage."), old, new


def _change(key: str, old: Any, new: Any) -> str:
    if key in ("previous", "stage"):
        return "what it is built on changed"
    return f"{key} {_shown(old)} → {_shown(new)}"


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "none"
    text = str(value)
    return text if len(text) <= 40 else f"{text[:39]}…"
