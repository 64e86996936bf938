"""Worked solutions and lessons for reasoning-gym's `chain_sum`: long sums and differences of integers, left to right.

A thorough solution keeps a running total, one operation a line: `4+3=7`, then `7-2=5`. A hasty one writes the
expression again with the total behind it.
"""

from collections.abc import Mapping
from random import Random
from typing import NamedTuple

from ziphius.tasks.base import Problem


class Step(NamedTuple):
    """One operation of an expression: `before` `sign` `term`."""

    before: int
    sign: str
    term: int

    @property
    def after(self) -> int:
        return self.before + self.term if self.sign == "+" else self.before - self.term

    def __str__(self) -> str:
        return f"{self.before}{self.sign}{self.term}={self.after}"


class SumWriter:
    """Traces and lessons of `chain_sum`; see `Writer`.

    Kinds of lesson: `facts` (operations of the size that occur), `tables` (one number with several terms in turn),
    `examples` (a whole question with thorough trace and answer), `drills` (a part of a thorough trace).
    """

    kinds: Mapping[str, float] = {"facts": 2.0, "tables": 2.0, "examples": 3.0, "drills": 2.0}

    def steps(self, problem: Problem) -> list[Step]:
        """The operations of a question from left to right; none for an expression of a single term."""
        first, *rest = problem.metadata["expression"].split()
        steps, total = [], int(first)
        for sign, term in zip(rest[::2], rest[1::2], strict=True):
            steps.append(Step(total, sign, int(term)))
            total = steps[-1].after
        return steps

    def trace(self, problem: Problem, rng: Random, thorough: bool) -> str:
        steps = self.steps(problem)
        if thorough and steps:
            return "\n".join(map(str, steps))
        return f"{problem.metadata['expression']} = {problem.answer}"

    def lesson(self, kind: str, problem: Problem, rng: Random) -> str:
        """One document of a kind; `problem` is a train problem whose numbers set its size."""
        steps = self.steps(problem) or [Step(int(problem.answer), "+", 0)]
        match kind:
            case "facts":
                return "\n".join(map(str, rng.sample(steps, len(steps))))
            case "tables":
                step = rng.choice(steps)
                width = 10 ** len(str(abs(step.term)))
                terms = sorted(rng.sample(range(width // 10 if width > 10 else 0, width), 6))
                return "\n".join(str(step._replace(term=term)) for term in terms)
            case "examples":
                return f"{problem.prompt.strip()}\n{self.trace(problem, rng, True)}\nAnswer: {problem.answer}"
            case _:
                start = rng.randrange(len(steps))
                return "\n".join(map(str, steps[start : rng.randint(start + 1, len(steps))]))
