"""What a verifier is: a small description that travels to a worker process and becomes a judge there."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ziphius.tasks.base import Problem, TaskError, Verdict

# Score in [0, 1] or None where it cannot be said, and the reason in a few words.
Judge = Callable[[Problem, str], tuple[float | None, str]]
LIMIT_S = 5.0


class Verifier(Protocol):
    """Picklable; equal ones pickle to equal bytes, so that a worker loads each once.

    limit_s: seconds of processor time that one check may take. reads: folders that it needs, beside Python's own.
    """

    @property
    def limit_s(self) -> float: ...

    @property
    def reads(self) -> tuple[Path, ...]: ...

    def load(self) -> Judge:
        """Imports and builds what judging needs, before any clock runs."""


@dataclass(frozen=True)
class Check:
    """One answer to be judged by a verifier in a worker."""

    verifier: Verifier
    problem: Problem
    answer: str


def words(score: float) -> str:
    """The reason for a score where its checker gives no other."""
    return "right" if score >= 1.0 else "wrong" if score <= 0.0 else "partly right"


def judge_apart(verifier: Verifier, pairs: Sequence[tuple[Problem, str]]) -> list[Verdict]:
    """The verdict on each answer to its problem, from worker processes; see `pool.Pool.judge`.

    Equal answers to one problem are judged once, so that they share a verdict (and its cost, where they hang).
    """
    from ziphius.tasks.pool import shared_pool  # what only POSIX machines have is not needed to read a recipe

    checks = {(id(problem), answer): Check(verifier, problem, answer) for problem, answer in pairs}
    verdicts = dict(zip(checks, shared_pool().judge(list(checks.values())), strict=True))
    return [verdicts[id(problem), answer] for problem, answer in pairs]


def limit_of(family: str, settings: Mapping[str, Any]) -> float:
    """The setting `limit_s`, which every family has whose answers are judged in workers. Raises TaskError."""
    limit_s = settings.get("limit_s", LIMIT_S)
    if isinstance(limit_s, bool) or not isinstance(limit_s, (int, float)) or not 0 < limit_s <= 3600:
        raise TaskError(f"tasks: family {family}: limit_s = {limit_s!r} must be seconds, above 0 and at most 3600")
    return float(limit_s)
