"""The doctor at the bedside: looks at every step of a running stage and speaks when something new is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ziphius.model.config import ModelConfig
from ziphius.reason.chart import Context
from ziphius.reason.doctor import diagnose
from ziphius.train.metrics import read_metrics


class Watch:
    """Called with each step's row of metrics; returns what is newly wrong, a sentence and its mend each.

    An illness is named once, and once more where a warning has grown into an illness. A stage that goes on after a
    stop is judged with the rows it had written before.
    """

    def __init__(self, config: ModelConfig, folder: Path) -> None:
        self.context = Context.of(config.routing)
        self.folder = folder
        self.rows: list[Mapping[str, Any]] | None = None
        self.said: set[tuple[str, str]] = set()

    def __call__(self, row: Mapping[str, Any]) -> list[str]:
        if self.rows is None:
            self.rows = [earlier for earlier in read_metrics(self.folder) if earlier["step"] < row["step"]]
            self._new(self.rows)
        return self._new([*self.rows, row])

    def _new(self, rows: list[Mapping[str, Any]]) -> list[str]:
        self.rows = rows
        found = diagnose(rows, self.context) if rows else []
        new = [finding for finding in found if (finding.name, finding.severity) not in self.said]
        self.said |= {(finding.name, finding.severity) for finding in new}
        self.said |= {(finding.name, "warning") for finding in new}  # what was ill and gets better is not news
        return [f"{finding.what} {finding.mend}" for finding in new]
