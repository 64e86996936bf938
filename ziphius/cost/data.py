"""The data tables: accelerators, prices, energy, shapes, published runs. TOML files of rows, and the user's own beside.

A table is read when it is first asked for, so that a plan reads only what it needs.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Sequence
from datetime import date as Date
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from ziphius.cost.rows import Accelerator, ApiPrice, Energy, ModelShape, Overhead, Purchase, Rental, Row, Software
from ziphius.cost.shape import Shape, shape_from_folder, shape_from_hf, shape_of
from ziphius.model.presets import preset, preset_names

R = TypeVar("R", bound=Row)

# table: the file that holds it and what a row is
TABLES: dict[str, tuple[str, type[Row]]] = {
    "accelerator": ("accelerators.toml", Accelerator),
    "model": ("models.toml", ModelShape),
    "software": ("software.toml", Software),
    "rental": ("prices.toml", Rental),
    "purchase": ("prices.toml", Purchase),
    "overhead": ("prices.toml", Overhead),
    "energy": ("energy.toml", Energy),
    "api": ("api.toml", ApiPrice),
}
PUBLISHED = ("published_train", "published_phases", "published_rl", "published_serve")


class DataError(ValueError):
    """A data file that cannot be used, or a name that no table holds: one line, with the file's line where there is."""


class Data:
    """The package's tables with the rows of `extra` files after them; a later row of the same name replaces."""

    def __init__(self, extra: Sequence[Path] = ()) -> None:
        self._extra = [_parse(path, path.read_text()) for path in map(_existing, extra)]
        for path, text, tables in self._extra:
            _refuse_unknown_tables(path, text, tables)
            for table in tables:  # a wrong row is refused now, whether this plan needs it or not
                list(_rows(path, text, tables, table, _kind(table)))
        self._files: dict[str, tuple[str, str, dict[str, Any]]] = {}

    def rows(self, table: str, kind: type[R], extra_only: bool = False) -> list[R]:
        """All rows of `table`, the package's first; with `extra_only` only those of the user's files."""
        if extra_only:
            return [row for source in self._extra for row in _rows(*source, table, kind)]
        name = TABLES[table][0] if table in TABLES else "published.toml"
        if name not in self._files:
            self._files[name] = _parse(name, files("ziphius.cost").joinpath("data", name).read_text("utf-8"))
        return [row for source in (self._files[name], *self._extra) for row in _rows(*source, table, kind)]

    @cached_property
    def accelerators(self) -> dict[str, Accelerator]:
        return {row.name: row for row in self.rows("accelerator", Accelerator)}

    def shape(self, model: str) -> Shape:
        """The shape of a model by its name, or of a folder with a `config.json`. Raises DataError listing the names.

        A name may be that of a Hugging Face repository: deepseek-ai/DeepSeek-R1, Qwen/Qwen3-8B-Base.
        """
        if Path(model).exists():
            return shape_from_folder(Path(model))
        name = _plain_name(model)
        if name in preset_names():
            return shape_of(preset(name))
        rows = {row.name: row for row in self.rows("model", ModelShape)}
        if name in rows:
            try:
                return shape_from_hf(rows[name].config)
            except ValueError as error:
                raise DataError(f"model {name}: {error}") from None
        known = ", ".join(sorted((*preset_names(), *rows)))
        raise DataError(f"no model called {model!r}, and no such folder; there are {known}")

    @cached_property
    def rentals(self) -> list[Rental]:
        return self.rows("rental", Rental)

    @cached_property
    def purchases(self) -> list[Purchase]:
        return self.rows("purchase", Purchase)

    @cached_property
    def overheads(self) -> dict[str, Overhead]:
        return {row.name: row for row in self.rows("overhead", Overhead)}

    @cached_property
    def energy(self) -> list[Energy]:
        return self.rows("energy", Energy)

    @cached_property
    def api_prices(self) -> list[ApiPrice]:
        return self.rows("api", ApiPrice)

    def accelerator(self, name: str) -> Accelerator:
        """The accelerator called `name`. Raises DataError listing the names when there is none."""
        found = self.accelerators.get(name.lower())
        if found is None:
            raise DataError(f"no accelerator called {name!r}; there are {', '.join(sorted(self.accelerators))}")
        return found

    def software(self, day: Date | None = None) -> Software:
        """What the software of `day` reaches, interpolated between the dated rows; without a day, the newest row."""
        rows = sorted(self.rows("software", Software), key=lambda row: row.date)
        if day is None or day >= rows[-1].date:
            return rows[-1]
        after = next(number for number, row in enumerate(rows) if row.date > day)
        if after == 0:
            return rows[0]
        older, newer = rows[after - 1], rows[after]
        weight = (day - older.date).days / (newer.date - older.date).days
        return older.model_copy(update=_between(older.model_dump(), newer.model_dump(), weight) | {"date": day})

    def rental(self, gpu: str, market: str | None = None) -> Rental:
        """What `gpu` rents for on `market`; without one, the first row of that GPU. Raises DataError."""
        offers = [row for row in self.rentals if row.gpu == gpu]
        found = [row for row in offers if market in (None, row.market)]
        if not found:
            markets = ", ".join(sorted({row.market for row in offers})) or "no rental price at all"
            raise DataError(f"{gpu} on the market {market!r}: there is {markets}; give --rate, or a row in --data FILE")
        return found[0] if market is None else found[-1]

    def api_price(self, model: str, day: Date, band: str = "all day") -> ApiPrice:
        """The list price of `model` on `day`. Raises DataError naming the days known."""
        known = [row for row in self.api_prices if row.model == model and row.band == band]
        valid = [row for row in known if row.since <= day and (row.until is None or day < row.until)]
        if not valid:
            since = ", ".join(str(row.since) for row in known) or "none at all"
            models = ", ".join(sorted({row.model for row in self.api_prices}))
            raise DataError(f"no {band} price of {model!r} on {day}; known since: {since} (models: {models})")
        return max(valid, key=lambda row: row.since)


def _between(older: dict[str, Any], newer: dict[str, Any], weight: float) -> dict[str, Any]:
    """Numbers on the line from `older` to `newer`; what is no number stays as it was."""
    mixed = {}
    for key, value in older.items():
        if isinstance(value, dict):
            mixed[key] = _between(value, newer[key], weight)
        else:
            mixed[key] = value + weight * (newer[key] - value) if isinstance(value, (int, float)) else value
    return mixed


def _plain_name(model: str) -> str:
    """`Meta-Llama-3.1-8B-Instruct` as the tables call it: llama-3.1-8b."""
    name = model.rsplit("/", 1)[-1].lower().removeprefix("meta-")
    name = re.sub(r"(-(instruct|base|hf|chat|\d{4}))+$", "", name)
    return re.sub(r"^(llama|olmo)(?=\d)", r"\1-", re.sub(r"^(qwen|smollm)-(?=\d)", r"\1", name))


def _kind(table: str) -> type[Row]:
    """What a row of `table` is; published results know the whole planner, and are imported only where they occur."""
    if table in TABLES:
        return TABLES[table][1]
    from ziphius.cost.published import KINDS

    return KINDS[table]


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise DataError(f"{path}: no such data file")
    return path


def _parse(path: Path | str, text: str) -> tuple[str, str, dict[str, Any]]:
    try:
        return str(path), text, tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{path}: not readable as TOML: {error}") from None


def _refuse_unknown_tables(path: str, text: str, tables: dict[str, Any]) -> None:
    for name, rows in tables.items():
        if name not in (*TABLES, *PUBLISHED):
            line = _line_of(text, rf"^\s*\[*\s*{re.escape(name)}\b")
            raise DataError(f"{path}:{line}: no table is called {name!r}; there are {', '.join((*TABLES, *PUBLISHED))}")
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            line = _line_of(text, rf"^\s*\[*\s*{re.escape(name)}\b")
            raise DataError(f"{path}:{line}: write each row of {name} under a heading [[{name}]]")


def _rows(path: str, text: str, tables: dict[str, Any], table: str, kind: type[R]) -> Iterator[R]:
    for number, raw in enumerate(tables.get(table, [])):
        try:
            yield kind(**raw)
        except ValidationError as error:
            errors = error.errors()  # a misspelt key says more than the one that it leaves missing
            first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
            key = str(first["loc"][0]) if first["loc"] else None
            what = first["msg"].removeprefix("Value error, ")
            got = f" (got {first['input']!r})" if key in raw else ""
            line = _line_of_key(text, table, number, key)
            raise DataError(f"{path}:{line}: {table}{f'.{key}' if key else ''}: {what}{got}") from None


def _line_of_key(text: str, table: str, number: int, key: str | None) -> int:
    """The line of `key` in the row `number` of `table`; the row's heading where the key is missing."""
    lines = text.splitlines()
    headings = [i for i, line in enumerate(lines) if re.match(rf"^\s*\[\[\s*{re.escape(table)}\s*\]\]", line)]
    if number >= len(headings):
        return _line_of(text, rf"^\s*{re.escape(table)}\s*=")
    start = headings[number]
    for i, line in enumerate(lines[start + 1 :], start + 1):
        if re.match(r"^\s*\[", line):
            break
        if key is not None and re.match(rf"^\s*\"?{re.escape(key)}\"?\s*=", line):
            return i + 1
    return start + 1


def _line_of(text: str, pattern: str) -> int:
    found = re.search(pattern, text, re.MULTILINE)
    return text.count("\n", 0, found.start() + len(found.group()) - len(found.group().lstrip())) + 1 if found else 1
