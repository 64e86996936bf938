"""Answers in free mathematical notation: a family of questions from a file, and how its answers are checked.

Computer algebra can run without end on a strange answer, so it runs in worker processes with a limit; a check that
exceeds it is undecided, never wrong.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ziphius.tasks.answers import extract_answer
from ziphius.tasks.base import Problem, TaskError, Verdict
from ziphius.tasks.math_check import at_once, check, fault
from ziphius.tasks.questions import QuestionFamily
from ziphius.tasks.verifier import LIMIT_S, Judge, judge_apart, limit_of


def verify_math(answer: str, gold: str, limit_s: float = LIMIT_S) -> Verdict:
    """Whether a bare answer means the same as `gold`, both plain text or LaTeX. Callable from any thread.

    Words, numbers and equal texts are judged on the spot; what takes algebra by math-verify in a worker (see
    `math_check`). `limit_s` is of processor time and counts from the moment the worker begins; a check that exceeds it
    is undecided.
    """
    return _verify_all([(Problem("math", "", gold), answer)], limit_s)[0]


@dataclass(frozen=True)
class MathVerifier:
    """`math_check.check` in a worker; see `Verifier`."""

    limit_s: float = LIMIT_S
    reads: tuple[Path, ...] = ()

    def load(self) -> Judge:
        check(r"\sqrt{2}", r"\sqrt{3}")  # loads math-verify, sympy and the grammar before anyone's clock runs
        return lambda problem, answer: check(answer, problem.answer)


class MathFamily(QuestionFamily):
    """Questions from a file (see `QuestionFamily`), checked by `verify_math`; `limit_s` for one check (default 5).

    An answer is text or a number; of a worked solution what `extract_answer` finds in it (GSM8K's end in "#### 18").
    Raises TaskError for an answer that none can meet, too.
    """

    name = "math"

    def __init__(self, settings: Mapping[str, Any]):
        super().__init__(settings, "limit_s")
        self._limit_s = limit_of(self.name, settings)

    def gold(self, answer: str, place: str) -> str:
        gold = extract_answer(answer)
        if why := fault(gold):
            raise TaskError(f"tasks: {place}: nobody can be right by the answer {gold[:80]!r}: {why}; mend it")
        return gold

    def verify(self, problem: Problem, answer: str) -> Verdict:
        return verify_math(answer, problem.answer, self._limit_s)

    def verify_all(self, pairs: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        return _verify_all(pairs, self._limit_s)


def _verify_all(pairs: Sequence[tuple[Problem, str]], limit_s: float) -> list[Verdict]:
    """What can be judged on the spot is; the rest goes to the workers in one batch."""
    outcomes = [at_once(answer, problem.answer) for problem, answer in pairs]
    hard = [pair for pair, outcome in zip(pairs, outcomes, strict=True) if outcome is None]
    judged = iter(judge_apart(MathVerifier(limit_s), hard) if hard else [])
    return [next(judged) if outcome is None else Verdict(*outcome) for outcome in outcomes]
