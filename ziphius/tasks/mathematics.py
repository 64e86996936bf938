"""Answers in free mathematical notation: taking them out of a completion, and checking them with math-verify.

Computer algebra can run without end on a strange answer, so it runs in worker processes with a limit; a check that
exceeds it is undecided, never wrong.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ziphius.tasks.base import Problem, Verdict
from ziphius.tasks.math_check import at_once, check
from ziphius.tasks.questions import QuestionFamily
from ziphius.tasks.verifier import LIMIT_S, Judge, judge_apart, limit_of


def extract_answer(text: str) -> str:
    r"""The answer in a text: what the last complete `\boxed{...}` holds, else what the last `<answer>...</answer>`
    holds, else the whole text; stripped."""
    start = text.rfind(r"\boxed{")
    while start >= 0:
        depth, first = 1, start + len(r"\boxed{")
        for place in range(first, len(text)):
            depth += {"{": 1, "}": -1}.get(text[place], 0)
            if depth == 0:
                return text[first:place].strip()
        start = text.rfind(r"\boxed{", 0, start)
    tagged = re.findall(r"<answer>(.*?)</answer>", text, flags=re.DOTALL)
    return (tagged[-1] if tagged else text).strip()


def verify_math(answer: str, gold: str, limit_s: float = LIMIT_S) -> Verdict:
    """Whether a bare answer means the same as `gold`, both plain text or LaTeX. Callable from any thread.

    Equal texts and whole numbers are judged on the spot; the rest by math-verify in a worker. `limit_s` is of processor
    time and counts from the moment the worker begins; a check that exceeds it is undecided.
    """
    return _verify_all([(Problem("math", "", gold), answer)], limit_s)[0]


@dataclass(frozen=True)
class MathVerifier:
    """math-verify in a worker; see `Verifier`."""

    limit_s: float = LIMIT_S
    reads: tuple[Path, ...] = ()

    def load(self) -> Judge:
        check("x", "y")  # loads math-verify, sympy and the grammar before anyone's clock runs
        return lambda problem, answer: check(answer.strip(), problem.answer.strip())


class MathFamily(QuestionFamily):
    """Questions from a file (see `QuestionFamily`), checked by `verify_math`; `limit_s` for one check (default 5)."""

    name = "math"

    def __init__(self, settings: Mapping[str, Any]):
        super().__init__(settings, "limit_s")
        self._limit_s = limit_of(self.name, settings)

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
