"""Reasoning-gym's families: their wording, their settings and their checkers, behind `Family`.

Source: reasoning-gym (Stojanovski et al. 2025, arXiv:2505.24760), the `reasoning_gym` package.
"""

import math
from collections.abc import Mapping
from dataclasses import fields
from random import Random
from typing import Any, Protocol

from ziphius.tasks.base import TICKET_BITS, Family, Problem, TaskError, Verdict

# These draw up a plan of `size` entries when made, or refuse a large `size`: so many tickets are all they have.
PLANNED = {"acre": 1 << 10, "gsm_symbolic": 1 << 14, "list_functions": 1 << 14, "word_ladder": 1 << 14}


class Writer(Protocol):
    """Writes the worked solutions and the lessons of one family. `kinds` are its lessons with their usual weights;
    `lesson` is only ever given problems of split train."""

    kinds: Mapping[str, float]

    def trace(self, problem: Problem, rng: Random, thorough: bool) -> str: ...

    def lesson(self, kind: str, problem: Problem, rng: Random) -> str: ...


class GymFamily(Family):
    """A reasoning-gym dataset as a family.

    name: its name in reasoning-gym. settings: fields of its config (but `size`: a family has no end), `seed` among them
    (an integer in [0, 2**31), 0 if left out). writer: worked solutions and lessons, where someone wrote them.
    Raises TaskError for an unknown setting and for one that the dataset's own `validate` refuses.
    """

    def __init__(self, name: str, settings: Mapping[str, Any], writer: Writer | None = None):
        from reasoning_gym.factory import DATASETS

        self.name = name
        self.writer = writer
        self.seed = settings.get("seed", 0)
        dataset_class, config_class = DATASETS[name]
        allowed = sorted(field.name for field in fields(config_class) if field.name != "size")
        for key in settings:
            if key not in allowed:
                raise TaskError(f"tasks: family {name} has no setting {key!r}; it has {', '.join(allowed)}")
        if not isinstance(self.seed, int) or not 0 <= self.seed < 1 << TICKET_BITS:
            raise TaskError(f"tasks: family {name}: seed = {self.seed!r} must be an integer in [0, 2**31)")
        self._tickets = PLANNED.get(name, 1 << TICKET_BITS)
        try:
            self._dataset = dataset_class(config_class(**{**settings, "seed": self.seed, "size": self._tickets}))
        except (AssertionError, ValueError, TypeError) as error:
            given = ", ".join(f"{key} = {value!r}" for key, value in settings.items()) or "its own defaults"
            raise TaskError(f"tasks: family {name} refuses {given}: {_one_line(error)}") from error

    def draw(self, ticket: int) -> Problem:
        entry = self._dataset[ticket % self._tickets]
        answer = entry["answer"]  # None where a family only has a checker
        question = entry["question"].rstrip()  # nobody who asks types the line break that some datasets end with
        return Problem(self.name, question, "" if answer is None else str(answer), entry["metadata"])

    def verify(self, problem: Problem, answer: str) -> Verdict:
        """The dataset's own `score_answer`. Many datasets give part of the score to an answer that merely holds the
        right one ("134" for "34"): `Verdict.correct` asks for the full score."""
        entry = {"question": problem.prompt, "answer": problem.answer, "metadata": problem.metadata}
        try:
            score = float(self._dataset.score_answer(answer, entry))
        except Exception as error:
            return Verdict(None, f"the checker of {self.name} failed: {_one_line(error)}")
        if not math.isfinite(score):
            return Verdict(None, f"the checker of {self.name} gave {score}")
        return Verdict(score, "right" if score >= 1.0 else "wrong" if score <= 0.0 else "partly right")

    def trace(self, problem: Problem, rng: Random, thorough: bool) -> str | None:
        return self.writer.trace(problem, rng, thorough) if self.writer else None

    def lesson(self, rng: Random, kinds: Mapping[str, float] | None = None) -> str | None:
        if self.writer is None:
            return None
        weights = self.writer.kinds if kinds is None else kinds
        unknown = sorted(set(weights) - set(self.writer.kinds))
        if unknown or not any(weights.values()):
            raise TaskError(
                f"tasks: family {self.name} has no lessons of kind {unknown or 'none at all'}; "
                f"it has {', '.join(self.writer.kinds)}"
            )
        kind = rng.choices(list(weights), list(weights.values()))[0]
        return self.writer.lesson(kind, self.problem("train", rng.getrandbits(TICKET_BITS)), rng)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
