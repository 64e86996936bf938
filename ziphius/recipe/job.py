"""What every stage needs to know of the run around it."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from ziphius.ledger.clock import Clock
from ziphius.recipe.schema import PretrainStage, Recipe
from ziphius.tasks.base import Family
from ziphius.tasks.registry import make_family
from ziphius.train.distributed import World


@dataclass
class Job:
    """A run, or its control: the same without thinking."""

    recipe: Recipe
    world: World
    thinking: bool
    peak_flops: dict[str, float]
    clock: Clock

    def say(self, text: str) -> None:
        """A line for the person at the terminal, once."""
        if self.world.is_main:
            print(text, file=sys.stderr, flush=True)

    def family(self, task: str) -> Family:
        settings = self.recipe.tasks[task]
        return make_family(settings.family, **settings.settings)

    def evaluation_texts(self) -> list[str]:
        """The questions of every evaluation and probe, which no training text may hold."""
        asked = [
            (name, self.recipe.evaluation.split, self.recipe.evaluation.n) for name in self.recipe.evaluation.tasks
        ]
        for stage in self.recipe.stages.values():
            if isinstance(stage, PretrainStage) and stage.probe:
                asked.append((stage.probe, "probe", stage.probe_n))
        return [p.prompt for name, split, n in asked for p in self.family(name).problems(split, n)]
