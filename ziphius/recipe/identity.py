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
_AS_EVER = (("too_long", "drop"),)  # settings that came after the first stages were made, at what they had been


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


def stage_identity(recipe: Recipe, stage: Stage, previous: str, thinking: bool, digests: Digests) -> Identity:
    """Of a stage that begins from `previous`: the digest of the tokenizer, or the print of the stage before."""
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
                settings["model"] = recipe.model.model_dump(mode="json")
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
    for manner in ("save_every", "recompute", "compile") if "train" in settings else ():
        del settings["train"][manner]
    return settings


def _without_path(settings: BaseModel) -> dict[str, Any]:
    """A file counts by what is in it, not by where it lies; a later setting only where it is not what always was."""
    found = settings.model_dump(mode="json", exclude={"path"})
    return {key: value for key, value in found.items() if (key, value) not in _AS_EVER}


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
