"""What a stage begins from. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

START = "start"  # what a stage calls the folder of `model.from`


@dataclass(frozen=True)
class Origin:
    """A model's `folder` (none for random weights), and a short name of all that it depends on.

    `texts`: folders of the stages that learned from files on the way to it. `made_here`: by this run, which then knows
    what must be in the folder.
    """

    folder: Path | None = None
    print: str = ""
    texts: tuple[Path, ...] = ()
    made_here: bool = False
