"""What every stage needs to know of the run around it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from ziphius.ledger.clock import Clock
from ziphius.recipe.schema import PretrainStage, Recipe
from ziphius.tasks.base import Family
from ziphius.tasks.registry import make_family
from ziphius.train.place import Place


@dataclass
class Job:
    """A run, or its control: the same without thinking. `cache` is a folder for what can be made again."""

    recipe: Recipe
    place: Place
    thinking: bool
    peak_flops: dict[str, float]
    clock: Clock
    cache: Path

    def say(self, text: str) -> None:
        """A line for the person at the terminal, once."""
        if self.place.is_main:
            print(text, file=sys.stderr, flush=True)

    def family(self, task: str) -> Family:
        settings = self.recipe.tasks[task]
        return make_family(settings.family, **settings.settings)

    def evaluation_texts(self) -> list[str]:
        """The questions of every evaluation and probe, which no training text may hold."""
        stages = [stage for stage in self.recipe.stages.values() if isinstance(stage, PretrainStage) and stage.probe]
        probes = [text for stage in stages for text in self._prompts(str(stage.probe), "probe", stage.probe_n)]
        return self.questions() + probes

    def questions(self) -> list[str]:
        """The questions of every evaluation."""
        asked = self.recipe.evaluation
        return [text for task in asked.tasks for text in self._prompts(task, asked.split, asked.n)]

    def _prompts(self, task: str, split: str, n: int) -> list[str]:
        return [problem.prompt for problem in self.family(task).problems(split, n)]
