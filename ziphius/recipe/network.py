"""The network of a recipe: made anew, or taken from a folder. Imports no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ziphius.ledger.model import model_files, model_folder
from ziphius.model.config import ModelConfig
from ziphius.model.families import config_from_hf
from ziphius.model.formats import Stored
from ziphius.model.presets import ladder, preset
from ziphius.recipe.errors import what_is_wrong

# What a network with weights may have otherwise than its folder says: how far it reaches, and how positions turn.
MAY_CHANGE = ("max_position_embeddings", "rope_theta", "rope_scaling")


class ModelSettings(BaseModel):
    """`depth` of the ladder, or a published `preset`, with random weights; or `from`, a model's or a run's folder.

    `overrides` replaces single keys of config.json; of a folder's only those of `MAY_CHANGE`, which a longer context
    needs. `dtype`: the format in which stages that begin from a folder write their weights, and hold those that they do
    not train; the folder's own unless given.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, serialize_by_alias=True)

    depth: int | None = Field(None, ge=2)
    preset: str | None = None
    from_: str | None = Field(None, alias="from")
    dtype: Stored | None = None
    overrides: dict[str, Any] = {}

    @model_validator(mode="after")
    def _one_of(self) -> ModelSettings:
        if [self.depth, self.preset, self.from_].count(None) != 2:
            raise ValueError(
                "give one of depth (the ladder of small models), preset (a published shape) and from (a model's folder)"
            )
        if self.from_ is None and self.dtype is not None:
            raise ValueError("dtype is for a model that is taken from a folder; a new one is trained and kept in fp32")
        unmovable = [key for key in self.overrides if key not in MAY_CHANGE]
        if self.from_ is not None and unmovable:
            raise ValueError(
                f"overrides.{unmovable[0]}: the weights of a folder fit the shape that its config.json says; only "
                f"{', '.join(MAY_CHANGE)} may change"
            )
        try:
            self.config(vocab_size=1024)  # refuses impossible overrides now
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(("overrides." if first["loc"] else "overrides: ") + what_is_wrong(first)) from None
        return self

    def config(self, vocab_size: int) -> ModelConfig:
        """The network's shape, with the vocabulary of the recipe's own tokenizer where it makes one."""
        if self.depth is not None:
            return ladder(self.depth, vocab_size, **self.overrides)
        if self.preset is not None:
            return preset(self.preset).replaced({"vocab_size": vocab_size} | self.overrides)
        return _config_of(self.start()).replaced(self.overrides)

    def start(self) -> Path:
        """The folder that the recipe begins from: `from`, or where that is a run the last model it trained.

        Raises ValueError in one line where it is gone, or holds no network.
        """
        assert self.from_ is not None
        given = Path(self.from_)
        if not given.exists():
            raise ValueError(f"from: {given} is not there; put the folder back, or name another")
        return model_folder(given)

    def start_files(self) -> list[Path]:
        """The files of the start that results depend on. Raises ValueError where one that is needed is not there."""
        folder = self.start()
        files = model_files(folder)
        for suffix, what in ((".safetensors", "weights (*.safetensors)"), ("tokenizer.json", "tokenizer.json")):
            if not any(path.name.endswith(suffix) for path in files):
                raise ValueError(f"model.from: {folder} holds no {what}; give a whole model's folder")
        return files

    @property
    def stored(self) -> Stored:
        """The format of the weights that stages write."""
        if self.from_ is None:
            return "fp32"
        return self.dtype or _config_of(self.start()).stored


def _config_of(folder: Path) -> ModelConfig:
    path = folder / "config.json"
    try:
        return config_from_hf(json.loads(path.read_text()))
    except FileNotFoundError:
        raise ValueError(f"from: {folder} holds no config.json; give the folder of a model or of a run") from None
    except ValidationError as error:
        raise ValueError(f"from: {path}: {what_is_wrong(error.errors()[0])}") from None
    except ValueError as error:
        raise ValueError(f"from: {path}: {error}") from None
