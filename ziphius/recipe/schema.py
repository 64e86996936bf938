"""What a recipe may say. Imports no torch: a wrong recipe is refused in a blink."""

from __future__ import annotations

import json
import tomllib
from copy import deepcopy
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from ziphius.evaluate.settings import EvaluationSettings
from ziphius.reason.settings import GRPOSettings
from ziphius.recipe.checks import check_order, check_together
from ziphius.recipe.errors import DEVICE, RecipeError, what_is_wrong
from ziphius.recipe.network import ModelSettings
from ziphius.recipe.origin import START
from ziphius.tasks.base import TaskError
from ziphius.tasks.registry import make_family
from ziphius.text import tokens
from ziphius.text.paths import CHATS, expand
from ziphius.train.settings import (
    LoopSettings,
    LossSettings,
    RLTrainSettings,
    SFTTrainSettings,
    TrainSettings,
)

Name = Annotated[str, StringConstraints(pattern=r"^[\w.-]+$")]  # it becomes a folder's

SMALLEST_VOCABULARY = 256 + len(tokens.CONTROL) + len(tokens.MARKUP)  # the bytes and DeepSeek's own tokens


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, serialize_by_alias=True)


class TaskSettings(_Strict):
    """A task family by name and its own settings, such as `min_animals` of reasoning-gym's leg_counting."""

    family: str
    settings: dict[str, Any] = {}

    @model_validator(mode="after")
    def _exists(self) -> TaskSettings:
        try:
            make_family(self.family, **self.settings)
        except TaskError as error:
            raise ValueError(str(error)) from None
        return self


class CorpusSettings(_Strict):
    """Training text: files, or the lessons that a task's family writes.

    `path`: .txt, .md, .jsonl or .parquet files (plain, .gz, .bz2, .zst, .xz), folders of them, or patterns such as
    `books/*.txt`, relative to where the run is started. `documents`: what a document is in a text file. `field`: where
    the text is in .jsonl and .parquet.
    """

    path: str | list[str] | None = None
    documents: Literal["file", "line", "paragraph"] = "file"
    field: str = "text"
    task: str | None = None
    kinds: dict[str, float] | None = None
    weight: float = Field(1.0, ge=0)

    @model_validator(mode="after")
    def _one_of(self) -> CorpusSettings:
        if (self.path is None) == (self.task is None):
            raise ValueError("give either path (files) or task (lessons of a task family)")
        self.files()
        return self

    def files(self) -> list[str]:
        """The files that `path` stands for now; ValueError where it stands for none."""
        return [] if self.path is None else expand(self.path)


class TokenizerStage(_Strict):
    """Train a byte-level BPE tokenizer on a sample of the corpora, drawn by their weights.

    The sample ends at `sample_bytes`, spread evenly over the files, or at `documents`; left out, at the end of all
    files, where there are any, and of 4000 documents.
    """

    kind: Literal["tokenizer"]
    vocab_size: int = Field(1024, ge=SMALLEST_VOCABULARY)
    documents: int | None = Field(None, gt=0)
    sample_bytes: int = Field(1 << 24, gt=0)


class PretrainStage(_Strict):
    """Next-token training on the corpora, from random weights or from the recipe's start. `probe` names the task whose
    worked solutions gate the end."""

    kind: Literal["pretrain"]
    seq_len: int = Field(128, gt=1)
    rows: int = Field(8, gt=0)
    micro_rows: int = Field(16, gt=0)
    first_rows: int | None = Field(None, gt=0)
    rows_warmup_steps: int = Field(0, ge=0)
    fim_rate: float = Field(0.0, ge=0, le=1)
    probe: str | None = None
    probe_n: int = Field(64, gt=0)
    train: TrainSettings
    loss: LossSettings = LossSettings()

    @model_validator(mode="after")
    def _hangs_together(self) -> PretrainStage:
        if (self.first_rows is None) != (self.rows_warmup_steps == 0):
            raise ValueError("first_rows and rows_warmup_steps only work together; give both, or neither")
        if self.first_rows is not None and self.first_rows > self.rows:
            raise ValueError(f"first_rows ({self.first_rows}) exceeds rows ({self.rows}), to which it grows; lower it")
        if self.train.gate_target is not None and self.probe is None:
            raise ValueError("train.gate_target needs a probe that measures the skill; name a task, or remove it")
        if self.train.gate_target is not None and self.train.gate_every >= self.train.steps:
            raise ValueError(
                f"train.gate_every ({self.train.gate_every}) leaves no step of the {self.train.steps} at which the "
                "skill could be measured; lower it, or remove train.gate_target"
            )
        return self


class _Later(_Strict):
    """A stage that goes on from a model: of the stage before it, or of the one that `from` names ("start": of the
    recipe's own start)."""

    from_: str | None = Field(None, alias="from")


class SFTStage(_Later):
    """Imitate worked solutions of a task (a share of them `thorough`, the rest hasty), or the chats of files.

    `path`: .jsonl, .json or .parquet files (plain, .gz, .bz2, .zst, .xz), folders of them, or patterns. Their rows are
    of one of the forms in `text/forms`, known by a file's first row: `messages`, ShareGPT, `prompt` with `completion`
    or `response`, Alpaca. All that the assistant says is trained on, and nothing else.

    `too_long`: what becomes of a sample of more than `seq_len` tokens. The stage ends after `epochs`, in a new order
    each, or after `train.steps` where those are given and fewer.
    """

    kind: Literal["sft"]
    task: str | None = None
    path: str | list[str] | None = None
    examples: int = Field(600, gt=0)
    thorough: float = Field(1.0, ge=0, le=1)
    epochs: int = Field(2, gt=0)
    seq_len: int = Field(256, gt=1)
    too_long: Literal["drop", "cut"] = "drop"
    rows: int = Field(8, gt=0)
    micro_rows: int = Field(16, gt=0)
    train: SFTTrainSettings = SFTTrainSettings()
    loss: LossSettings = LossSettings()

    @model_validator(mode="after")
    def _one_of(self) -> SFTStage:
        if (self.path is None) == (self.task is None):
            raise ValueError("give either task (worked solutions) or path (files of chats)")
        self.files()
        _refuse_gate(self.train)
        return self

    def files(self) -> list[str]:
        """The files that `path` stands for now; ValueError where it stands for none."""
        return [] if self.path is None else expand(self.path, CHATS)


class GRPOStage(_Later):
    """Reinforcement learning on tasks, by name and weight."""

    kind: Literal["grpo"]
    tasks: dict[str, Annotated[float, Field(ge=0)]]
    grpo: GRPOSettings = GRPOSettings()
    train: RLTrainSettings
    loss: LossSettings = LossSettings(mtp_weight=0.1)

    @model_validator(mode="after")
    def _something_to_learn(self) -> GRPOStage:
        if not sum(self.tasks.values()):
            raise ValueError("tasks names nothing to learn; give at least one task a weight above 0")
        _refuse_gate(self.train)
        renewed = self.grpo.policy.kl_weight and self.grpo.reference_refresh < self.train.steps
        if self.train.lora is not None and renewed:
            raise ValueError(
                f"grpo.reference_refresh ({self.grpo.reference_refresh}) renews the KL reference before the "
                f"{self.train.steps} steps are over, and with train.lora that is the frozen network; raise it to "
                f"{self.train.steps}, or begin a second stage there"
            )
        return self


def _refuse_gate(train: LoopSettings) -> None:
    if train.gate_target is not None:
        raise ValueError("train.gate_target works in pretraining only, where a probe measures the skill; remove it")


Stage = Annotated[TokenizerStage | PretrainStage | SFTStage | GRPOStage, Field(discriminator="kind")]


class EvaluateSettings(EvaluationSettings):
    """What is asked after every sft and grpo stage: `tasks` by name."""

    tasks: list[str] = Field(default_factory=list)


class PriceSettings(_Strict):
    """What an hour of this machine costs, and what that rate is."""

    dollars_per_hour: float = Field(0.0, ge=0)
    what: str = ""


class MachineSettings(_Strict):
    """`device`: 'auto' (the GPUs where there are any, else the CPU), 'cpu', 'cuda' (all GPUs) or 'cuda:1' (that one).

    `processes`: how many share the data (0: on GPUs one each; on a CPU try processes against threads and take the
    faster).

    `train_flops_per_second`: what training reaches on the whole machine, for the plan (left out: two CPU cores).
    """

    device: str = Field("auto", pattern=DEVICE)
    processes: int = Field(0, ge=0)
    train_flops_per_second: float | None = Field(None, gt=0)


class Recipe(_Strict):
    """A whole run. Stages run in the order in which they are written, each from the one before unless it says `from`.

    With `model.from` there is no tokenizer stage, and a pretraining stage, if any, goes on from that folder.
    """

    name: Name
    seed: int = Field(0, ge=0)
    model: ModelSettings
    tasks: dict[str, TaskSettings] = {}
    corpora: dict[str, CorpusSettings] = {}
    stages: dict[Name, Stage]
    evaluation: EvaluateSettings = EvaluateSettings()
    price: PriceSettings = PriceSettings()
    machine: MachineSettings = MachineSettings()

    @model_validator(mode="after")
    def _hangs_together(self) -> Recipe:
        named = {f"corpora.{name}.task": corpus.task for name, corpus in self.corpora.items() if corpus.task}
        for name, stage in self.stages.items():
            if isinstance(stage, PretrainStage) and stage.probe is not None:
                named[f"stages.{name}.probe"] = stage.probe
            if isinstance(stage, SFTStage) and stage.task:
                named[f"stages.{name}.task"] = stage.task
            if isinstance(stage, GRPOStage):
                named |= {f"stages.{name}.tasks.{task}": task for task in stage.tasks}
        named |= {f"evaluation.tasks[{i}]": task for i, task in enumerate(self.evaluation.tasks)}
        for place, task in named.items():
            if task not in self.tasks:
                raise ValueError(
                    f"{place} names the task {task!r}; [tasks] has {', '.join(self.tasks) or 'nothing yet'}"
                )
        check_order(self)
        self.inputs()
        check_together(self)
        return self

    def inputs(self) -> dict[str, str]:
        """What each stage begins from: an earlier stage's name, START for the model's folder, "" for nothing trained.

        Raises ValueError where a stage names what is not there.
        """
        found: dict[str, str] = {}
        before = START if self.model.from_ is not None else ""
        for name, stage in self.stages.items():
            if isinstance(stage, TokenizerStage):
                found[name] = ""
                continue
            found[name] = before
            if isinstance(stage, _Later) and stage.from_ is not None:
                trained = [earlier for earlier in found if not isinstance(self.stages[earlier], TokenizerStage)]
                there = [START] * (self.model.from_ is not None) + trained[:-1]
                if stage.from_ not in there:
                    raise ValueError(
                        f"stages.{name}.from is {stage.from_!r}; it can be {', '.join(there) or 'nothing yet'}"
                    )
                found[name] = stage.from_
            before = name
        return found


def load_recipe(path: str | Path, overrides: list[str] | None = None, seed: int | None = None) -> Recipe:
    """Read a recipe and apply `key=value` overrides (`pretrain.train.steps=100`; the prefix `stages.` may be left out).

    Raises RecipeError in one line: the file, the key, what is wrong and the mend.
    """
    path = Path(path)
    try:
        raw = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe; `ls recipes` shows those that come with Ziphius") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"{path}: not readable as TOML: {error}") from None
    for override in overrides or []:
        _apply(raw, override)
    if seed is not None:
        raw["seed"] = seed
    return check_recipe(raw, str(path))


def check_recipe(raw: dict[str, Any], where: str) -> Recipe:
    """The checked recipe, or RecipeError naming the first key that is wrong."""
    try:
        return Recipe(**raw)
    except ValidationError as error:
        raise RecipeError(f"{where}: {what_is_wrong(error.errors()[0])}") from None


def changed_recipe(raw: dict[str, Any], override: str) -> Recipe:
    """The recipe `raw`, which stays as it is, with one `key=value` changed. Raises RecipeError where it is refused."""
    raw = deepcopy(raw)
    _apply(raw, override)
    return check_recipe(raw, f"--set {override}")


def _apply(raw: dict[str, Any], override: str) -> None:
    """Set one `a.b.c=value`; the value is read as TOML, and as a string where it is none."""
    key, found, text = override.partition("=")
    if not found or not all(part.strip() for part in key.split(".")):
        raise RecipeError(f"--set {override}: write it as key=value, for instance pretrain.train.steps=100")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    parts = key.strip().split(".")
    if parts[0] not in raw and parts[0] in raw.get("stages", {}):
        parts.insert(0, "stages")
    table = raw
    for part in parts[:-1]:
        if table.get(part) is None:  # a resolved recipe says so of what was left out
            table[part] = {}
        table = table[part]
        if not isinstance(table, dict):
            raise RecipeError(f"--set {override}: {part} is a value, not a table")
    table[parts[-1]] = value


def fingerprint(*parts: Any) -> str:
    """A short stable name of some settings: the same settings, the same name."""
    plain = json.dumps(parts, sort_keys=True, default=lambda part: part.model_dump(mode="json"))
    return blake2b(plain.encode(), digest_size=8).hexdigest()


def parse_settings(pairs: list[str]) -> dict[str, Any]:
    """`key=value` pairs of the command line as a table, values read as TOML."""
    table: dict[str, Any] = {}
    for pair in pairs:
        _apply(table, pair)
    return table
