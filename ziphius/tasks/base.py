"""What a task is: problems with a sure answer, a checker, and three splits that can never share a prompt.

A *family* makes problems of one kind without end. Each problem belongs to the split that a hash of its own prompt
assigns, so training text cannot hold a test prompt whatever seeds and settings two families were made with.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from random import Random
from typing import Any

SPLIT_PERCENT = {"train": 80, "probe": 10, "test": 10}
MAX_DRAWS = 400  # a split of 10 % is missed 400 times in a row with chance 5e-19: then the space is too small
TICKET_BITS = 31  # seed + ticket stays below 2**32, the largest seed numpy takes


class TaskError(ValueError):
    """A task was asked for something it cannot give. The message is one line: what, where and the mend."""


@dataclass(frozen=True)
class Problem:
    """One question with its answer. `metadata` is what the family's own checker and writer need."""

    family: str
    prompt: str
    answer: str
    metadata: dict[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Verdict:
    """What a checker said. `score` lies in [0, 1], 1 being right; None is undecided (the checker crashed or ran out of
    time): nothing is learned from such an answer, and no score counts it as right."""

    score: float | None
    reason: str

    @property
    def correct(self) -> bool | None:
        """True only for the full score, None while undecided."""
        return None if self.score is None else self.score >= 1.0


def normalised(prompt: str) -> str:
    """The prompt with every run of whitespace made one space: what decides whether two prompts are the same."""
    return " ".join(prompt.split())


def split_of(prompt: str) -> str:
    """The split a prompt belongs to, on any machine and for ever, by the blake2b hash of its normalised text."""
    place = int.from_bytes(blake2b(normalised(prompt).encode(), digest_size=8).digest(), "big") % 100
    for split, percent in SPLIT_PERCENT.items():
        if place < percent:
            return split
        place -= percent
    raise AssertionError("the percents of the splits add up to 100")


class Family(ABC):
    """Problems of one kind. `problem(split, index)` is a pure function of (settings, seed, split, index)."""

    name: str
    seed: int = 0

    @abstractmethod
    def draw(self, ticket: int) -> Problem:
        """The problem that a ticket (an integer of 31 bits) stands for, in whatever split it falls."""

    @abstractmethod
    def verify(self, problem: Problem, answer: str) -> Verdict:
        """Checks a bare answer (see `extract_answer`); a checker that fails gives an undecided verdict."""

    def verify_all(self, pairs: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        """The verdict on each answer to its problem. Families that judge in worker processes take them all at once."""
        return [self.verify(problem, answer) for problem, answer in pairs]

    def problem(self, split: str, index: int) -> Problem:
        """Number `index` (>= 0, no upper end) of a split. Two indices may hold the same prompt; see `problems`.

        Raises TaskError for an unknown split, or where the settings allow too few problems to fill this split.
        """
        check_split(split)
        for attempt in range(MAX_DRAWS):
            problem = self.draw(_ticket(self.seed, index, attempt))
            if split_of(problem.prompt) == split:
                return problem
        raise TaskError(
            f"tasks: family {self.name} with these settings has too few distinct problems for split {split}: "
            f"none in {MAX_DRAWS} draws; widen its settings"
        )

    def problems(self, split: str, n: int) -> list[Problem]:
        """The first `n` problems of a split with distinct prompts. Raises TaskError where there are fewer than `n`."""
        check_split(split)
        found: dict[str, Problem] = {}
        index = repeats = 0
        while len(found) < n:
            problem = self.problem(split, index)
            index += 1
            repeats = repeats + 1 if normalised(problem.prompt) in found else 0
            found.setdefault(normalised(problem.prompt), problem)
            if repeats > MAX_DRAWS + 20 * len(found):
                raise TaskError(
                    f"tasks: family {self.name} with these settings has fewer than {n} distinct problems for split "
                    f"{split} (found {len(found)}); ask for fewer or widen its settings"
                )
        return list(found.values())

    def trace(self, problem: Problem, rng: Random, thorough: bool) -> str | None:
        """A worked solution ending in the answer: step by step, or hasty (no steps). None where the family has none."""
        return None

    def lesson(self, rng: Random, kinds: Mapping[str, float] | None = None) -> str | None:
        """One pretraining document in plain text, built from train problems only. None where the family has none.

        `kinds` weighs the kinds of lesson (names not given weigh nothing); left out, the family's own mix.
        """
        return None


def check_split(split: str) -> None:
    if split not in SPLIT_PERCENT:
        raise TaskError(f"tasks: unknown split {split!r}; the splits are {', '.join(SPLIT_PERCENT)}")


def assert_disjoint(families: Iterable[Family], n: int) -> None:
    """Draws `n` problems of each split of each family and raises TaskError where one prompt turns up in two splits."""
    owner: dict[str, str] = {}
    for family in families:
        for split in SPLIT_PERCENT:
            for index in range(n):
                prompt = normalised(family.problem(split, index).prompt)
                if owner.setdefault(prompt, split) != split:
                    raise TaskError(
                        f"tasks: family {family.name} gives one prompt in both {owner[prompt]} and {split}: "
                        f"{prompt[:80]!r}; its problem() must follow split_of()"
                    )


def _ticket(seed: int, index: int, attempt: int) -> int:
    digest = blake2b(b"%d %d %d" % (seed, index, attempt), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> (64 - TICKET_BITS)
