"""Where a stage's numbers go: `metrics.jsonl`, TensorBoard event files, and the terminal."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from ziphius.disk.errors import AGAIN, explained
from ziphius.disk.write import write_text

_PLAIN_EVERY_SECONDS = 10.0


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of `folder/metrics.jsonl`; an unfinished last line (a killed run's) is left out."""
    path = folder / "metrics.jsonl"
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class MetricLog:
    """Appends rows to `metrics.jsonl` and to TensorBoard files in `folder/tensorboard`; what is not finite is null.

    Started at a step, it first drops the rows after it: they belong to work that a killed run has lost. Raises
    DiskError where the disk refuses.
    """

    def __init__(self, folder: Path, from_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        kept = [row for row in read_metrics(folder) if row["step"] <= from_step]
        self._path = folder / "metrics.jsonl"
        write_text(self._path, "".join(json.dumps(row) + "\n" for row in kept))
        with explained(self._path):
            self._file = self._path.open("a")
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=from_step + 1)

    def write(self, row: dict[str, Any], then: str = AGAIN) -> None:
        row = {key: None if isinstance(x, float) and not math.isfinite(x) else x for key, x in row.items()}
        with explained(self._path, then=then):
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
            for key, value in row.items():
                if key != "step" and isinstance(value, (int, float)):
                    self._board.add_scalar(key, value, row["step"])

    def close(self, then: str = AGAIN) -> None:
        with explained(self._path, then=then):
            self._file.close()
            self._board.close()


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(task.fields.get("note", ""))


class ProgressLine:
    """A progress bar on a terminal; in a log file one plain line every ten seconds. Silent on ranks other than 0."""

    def __init__(self, title: str, total: int, show: bool) -> None:
        self.title, self.total, self.show = title, total, show
        self._last = time.monotonic()
        self._bar: Progress | None = None
        if show and sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=28),
                TextColumn("{task.completed}/{task.total}"),
                TimeRemainingColumn(),
                _Speed(),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task(title, total=total)

    def update(self, done: int, note: str, total: int | None = None) -> None:
        self.total = total or self.total
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=self.total, note=note)
        elif self.show and (done == self.total or time.monotonic() - self._last > _PLAIN_EVERY_SECONDS):
            self._last = time.monotonic()
            print(f"{self.title}: {done}/{self.total} {note}", file=sys.stderr, flush=True)

    def say(self, sentence: str) -> None:
        """A line that stays, above the bar."""
        if self._bar is not None:
            self._bar.console.print(f"[yellow]{self.title}[/]: {escape(sentence)}")
        elif self.show:
            print(f"{self.title}: {sentence}", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
