"""Reasoning-gym's families: their wording, their settings and their checkers, behind `Family`.

Source: reasoning-gym (Stojanovski et al. 2025, arXiv:2505.24760), the `reasoning_gym` package.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from hashlib import blake2b
from pathlib import Path
from random import Random
from typing import Any, Protocol

from ziphius.tasks.base import TICKET_BITS, Family, Problem, TaskError, Verdict
from ziphius.tasks.gates import refusal
from ziphius.tasks.verifier import LIMIT_S, Judge, judge_apart, limit_of, words

# These draw up a plan of `size` entries when made, or refuse a large `size`: so many tickets are all they have.
PLANNED = {"acre": 1 << 10, "gsm_symbolic": 1 << 14, "list_functions": 1 << 14, "word_ladder": 1 << 14}

# Checkers read line by line and found to do nothing but compare texts, or decimal numbers, by the digest of their
# source: that of reasoning-gym's base class, and that of chain_sum and products. Any other version goes to a worker.
READ = {"2e4a3145db7d1705", "8323eeb410c582fd"}

# What checkers raise that meet text where they expect numbers, or nesting without end: the answer's fault, not theirs.
UNREADABLE = (ValueError, OverflowError, RecursionError)


class Writer(Protocol):
    """Writes the worked solutions and the lessons of one family. `kinds` are its lessons with their usual weights;
    `lesson` is only ever given problems of split train."""

    kinds: Mapping[str, float]

    def trace(self, problem: Problem, rng: Random, thorough: bool) -> str: ...

    def lesson(self, kind: str, problem: Problem, rng: Random) -> str: ...


@dataclass(frozen=True)
class GymVerifier:
    """A dataset's own `score_answer` behind its gate; see `Verifier`."""

    name: str
    settings: Mapping[str, Any]
    limit_s: float = LIMIT_S
    reads: tuple[Path, ...] = ()

    def load(self) -> Judge:
        dataset, _ = make_dataset(self.name, self.settings)

        def judge(problem: Problem, answer: str) -> tuple[float | None, str]:
            entry = _entry(problem)
            mixed = self.name == "composite"
            if why := refusal(problem.metadata["source_dataset"] if mixed else self.name, answer, entry):
                return 0.0, why
            try:
                score = float(dataset.score_answer(answer, entry))
            except UNREADABLE as error:
                return 0.0, f"not in the form that is asked for: {_one_line(error)}"
            return score, words(score)

        return judge


class GymFamily(Family):
    """A reasoning-gym dataset as a family.

    name: its name in reasoning-gym. settings: fields of its config (but `size`: a family has no end), `seed` among them
    (an integer in [0, 2**31), 0 if left out); where answers are judged in worker processes also `limit_s`, the
    processor time of one check (default 5). writer: worked solutions and lessons, where someone wrote them.
    Raises TaskError for an unknown setting and for one that the dataset's own `validate` refuses.

    Datasets whose checkers only compare (see `READ`) are judged in this process; all others in workers.
    """

    def __init__(self, name: str, settings: Mapping[str, Any], writer: Writer | None = None):
        self.name = name
        self.writer = writer
        self.seed = settings.get("seed", 0)
        limit_s = limit_of(name, settings)
        own = {key: value for key, value in settings.items() if key != "limit_s"}
        self._dataset, self._tickets = make_dataset(name, own)
        self._verifier = None if _compares_texts(self._dataset) else GymVerifier(name, own, limit_s)
        if self._verifier is None and "limit_s" in settings:
            raise TaskError(f"tasks: family {name} compares texts and takes no time: leave limit_s out")

    @property
    def judges_apart(self) -> bool:
        """Whether its answers go to worker processes."""
        return self._verifier is not None

    def draw(self, ticket: int) -> Problem:
        entry = self._dataset[ticket % self._tickets]
        answer = entry["answer"]  # None where a family only has a checker
        question = entry["question"].rstrip()  # nobody who asks types the line break that some datasets end with
        return Problem(self.name, question, "" if answer is None else str(answer), entry["metadata"])

    def verify(self, problem: Problem, answer: str) -> Verdict:
        """The dataset's own `score_answer`. Many datasets give part of the score to an answer that merely holds the
        right one ("134" for "34"): `Verdict.correct` asks for the full score."""
        return self.verify_all([(problem, answer)])[0]

    def verify_all(self, pairs: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        if self._verifier is not None:
            return judge_apart(self._verifier, pairs)
        scores = [float(self._dataset.score_answer(answer, _entry(problem))) for problem, answer in pairs]
        return [Verdict(score, words(score)) for score in scores]

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


def make_dataset(name: str, settings: Mapping[str, Any]) -> tuple[Any, int]:
    """Reasoning-gym's dataset of that name with these settings of its config, and how many entries it has.

    Raises TaskError for an unknown setting and for one that it refuses.
    """
    from reasoning_gym.factory import DATASETS

    dataset_class, config_class = DATASETS[name]
    allowed = sorted(field.name for field in fields(config_class) if field.name != "size")
    for key in settings:
        if key not in allowed:
            raise TaskError(f"tasks: family {name} has no setting {key!r}; it has {', '.join(allowed)}")
    seed = settings.get("seed", 0)
    if not isinstance(seed, int) or not 0 <= seed < 1 << TICKET_BITS:
        raise TaskError(f"tasks: family {name}: seed = {seed!r} must be an integer in [0, 2**31)")
    tickets = PLANNED.get(name, 1 << TICKET_BITS)
    try:
        return dataset_class(config_class(**{**settings, "seed": seed, "size": tickets})), tickets
    except (AssertionError, ValueError, TypeError) as error:
        given = ", ".join(f"{key} = {value!r}" for key, value in settings.items()) or "its own defaults"
        raise TaskError(f"tasks: family {name} refuses {given}: {_one_line(error)}") from error


def _compares_texts(dataset: Any) -> bool:
    """Whether its checker does nothing but compare, so that it is safe and quick on any text in this process."""
    return _digest(type(dataset).score_answer) in READ


@cache
def _digest(checker: Any) -> str:
    """Of a checker's source and of the one helper that checkers among `READ` call."""
    from reasoning_gym.utils import compute_decimal_reward

    source = inspect.getsource(checker)
    if "compute_decimal_reward" in source:
        source += inspect.getsource(compute_decimal_reward)
    return blake2b(source.encode(), digest_size=8).hexdigest()


def _entry(problem: Problem) -> dict[str, Any]:
    return {"question": problem.prompt, "answer": problem.answer, "metadata": problem.metadata}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
