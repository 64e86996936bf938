"""Worked solutions and lessons for reasoning-gym's `leg_counting`.

A thorough solution has one line for each animal, those with the fewest legs first, in the question's words:
`- cows*3 +12 =12`, `- ant*1 +6 =18`. A hasty one names all animals and jumps to the total: `- cows*3, ant*1 =18`.
Lessons teach what the thorough one needs: legs, products, additions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from random import Random

from ziphius.tasks.base import Problem


@dataclass(frozen=True)
class Step:
    """One animal of a question: its `name` in the question's words and `count`, its `legs`, and the `total` with it."""

    name: str
    count: int
    legs: int
    total: int

    @property
    def times(self) -> str:
        return f"{self.name}*{self.count}"

    def __str__(self) -> str:
        return f"- {self.times} +{self.legs} ={self.total}"


class LegWriter:
    """Traces and lessons of `leg_counting`; see `Writer`.

    Kinds of lesson: `facts` (legs of an animal), `products` (legs of several), `additions` (sums of the size that
    occur), `lists` (animals read off a list, one a line), `examples` (a whole question with thorough trace and
    answer), `drills` (a part of a thorough trace).
    """

    kinds: Mapping[str, float] = {
        "facts": 1.0, "products": 2.0, "additions": 2.0, "lists": 2.0, "examples": 3.0, "drills": 2.0,
    }  # fmt: skip

    @cached_property
    def legs_of(self) -> dict[str, int]:
        """Reasoning-gym's table of 37 animals."""
        from reasoning_gym.arithmetic.leg_counting import ANIMALS

        return ANIMALS

    def steps(self, problem: Problem) -> list[Step]:
        """The running sum over a question's animals, those with the fewest legs first."""
        steps, total = [], 0
        counts = problem.metadata["animals"]
        for animal in (name for name in self.legs_of if name in counts):
            count = counts[animal]
            legs = count * self.legs_of[animal]
            total += legs
            steps.append(Step(_named(count, animal), count, legs, total))
        return steps

    def trace(self, problem: Problem, rng: Random, thorough: bool) -> str:
        steps = self.steps(problem)
        if thorough:
            return "\n".join(map(str, steps))
        return f"- {', '.join(step.times for step in steps)} ={steps[-1].total}"

    def lesson(self, kind: str, problem: Problem, rng: Random) -> str:
        """One document of a kind; `problem` is a train problem whose animals, counts and totals set its size."""
        match kind:
            case "facts":
                animals = rng.sample(list(self.legs_of), rng.randint(3, 8))
                return "\n".join(_fact(animal, self.legs_of[animal], rng) for animal in animals)
            case "products":
                return "\n".join(self._products(problem, rng))
            case "additions":
                return "\n".join(self._additions(problem, rng))
            case "lists":
                steps = self.steps(problem)
                asked = problem.metadata["animals"].items()
                question = ", ".join(f"{count} {_named(count, animal)}" for animal, count in asked)
                return "\n".join([question, *(f"- {step.times}" for step in steps)])
            case "examples":
                return f"{problem.prompt.strip()}\n{self.trace(problem, rng, True)}\nAnswer: {problem.answer}"
            case _:
                return self._drill(problem, rng)

    def _products(self, problem: Problem, rng: Random) -> list[str]:
        """Half of them the table of one animal in order, half a handful of animals with random counts."""
        low, high = problem.metadata["difficulty"]["num_instances"]
        if rng.random() < 0.5:
            start, animal = rng.randint(low, high), rng.choice(list(self.legs_of))
            pairs = [(count, animal) for count in range(start, min(start + 7, high) + 1)]
        else:
            pairs = [(rng.randint(low, high), rng.choice(list(self.legs_of))) for _ in range(rng.randint(3, 8))]
        return [f"- {_named(count, animal)}*{count} +{count * self.legs_of[animal]}" for count, animal in pairs]

    def _additions(self, problem: Problem, rng: Random) -> list[str]:
        """The sums a trace makes in silence: each of a problem's own, or one total with several products in turn."""
        steps = self.steps(problem)
        if rng.random() < 0.5:
            return [f"{step.total - step.legs} +{step.legs} ={step.total}" for step in steps]
        step = rng.choice(steps)
        before, each = step.total - step.legs, self.legs_of[rng.choice(list(self.legs_of))]
        high = problem.metadata["difficulty"]["num_instances"][1]
        counts = sorted(rng.sample(range(1, high + 1), min(high, 6)))
        return [f"{before} +{count * each} ={before + count * each}" for count in counts]

    def _drill(self, problem: Problem, rng: Random) -> str:
        """A stretch of a trace that goes on from a total in the middle."""
        steps = self.steps(problem)
        start = rng.randrange(len(steps))
        end = rng.randint(start + 1, len(steps))
        before = steps[start].total - steps[start].legs
        return "\n".join([f"={before}", *map(str, steps[start:end])])


def _named(count: int, animal: str) -> str:
    return f"{animal}{'s' if count > 1 else ''}"  # reasoning-gym's plural, `deers` included


def _fact(animal: str, legs: int, rng: Random) -> str:
    article = "an" if animal[0] in "aeiou" else "a"
    return rng.choice(
        [
            f"{article.capitalize()} {animal} has {legs} legs.",
            f"{animal.capitalize()}s have {legs} legs.",
            f"- {animal}*1 +{legs}",
            f"How many legs has {article} {animal}? {legs}.",
            f"{animal.capitalize()}s: {legs} legs each.",
        ]
    )
