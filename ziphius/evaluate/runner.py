"""How good a model is at a family of problems: sampled and greedy, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from ziphius.engine.engine import Engine
from ziphius.engine.settings import SamplingSettings
from ziphius.evaluate.metrics import majority, mean_ci, pass_at_k, wilson
from ziphius.evaluate.settings import EvaluationSettings
from ziphius.model.transformer import Transformer
from ziphius.reason.rewards import RewardWeights, split_completion
from ziphius.reason.rollout import Group, Rollout, roll_out, rollout_engine
from ziphius.tasks import extract_answer
from ziphius.tasks.base import Family, Problem
from ziphius.text.tokenizer import Tokenizer
from ziphius.train.place import Place


@dataclass
class Evaluation:
    """Shares are in [0, 1]; intervals are 95%, clustered by problem where there are several samples each.

    Answers whose check failed are undecided: they count as not right in every share and are counted apart, those of the
    samples in `undecided`, those of the greedy answers in `greedy_undecided`. The `_bounds` are what a share is where
    all of them are wrong and where all are right.
    """

    family: str
    split: str
    n: int
    samples: int
    pass_at_1: float
    pass_at_1_bounds: tuple[float, float]
    ci95: tuple[float, float]
    greedy: float
    greedy_bounds: tuple[float, float]
    greedy_ci95: tuple[float, float]
    pass_at_k: dict[str, float]
    majority_at_k: float
    format: float
    response_length: float
    undecided: int
    greedy_undecided: int
    examples: list[dict[str, Any]]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def evaluate(
    model: Transformer,
    tokenizer: Tokenizer,
    family: Family,
    settings: EvaluationSettings,
    *,
    thinking: bool,
    seed: int,
    place: Place | None = None,
) -> Evaluation:
    """Ask the model `settings.n` problems, shared among the ranks; every rank gets the same result."""
    place = place or Place()
    problems = family.problems(settings.split, settings.n)
    mine = problems[place.rank :: place.size]
    engine = rollout_engine(model, tokenizer)
    sampled = _ask(engine, tokenizer, family, mine, settings, thinking, seed * place.size + place.rank)
    greedy = _ask(engine, tokenizer, family, mine, settings, thinking, seed, greedy=True)
    parts = place.gather([_tally(s, g, thinking) for s, g in zip(sampled, greedy, strict=True)])
    rows = [parts[i % place.size][i // place.size] for i in range(len(problems))]
    return _summarise(rows, family.name, settings)


def _ask(
    engine: Engine,
    tokenizer: Tokenizer,
    family: Family,
    problems: Sequence[Problem],
    settings: EvaluationSettings,
    thinking: bool,
    seed: int,
    greedy: bool = False,
) -> list[Group]:
    sampling = SamplingSettings(
        temperature=0.0 if greedy else settings.temperature,
        top_p=settings.top_p,
        max_new_tokens=settings.max_new_tokens,
    )
    return roll_out(
        engine,
        tokenizer,
        [(family, problem) for problem in problems],
        sampling,
        seed,
        samples=1 if greedy else settings.samples,
        thinking=thinking,
        weights=RewardWeights(),
    )


def _tally(sampled: Group, greedy: Group, thinking: bool) -> dict[str, Any]:
    """What one problem adds to the evaluation, in plain values."""
    first = greedy.rollouts[0]
    return {
        "verdicts": [_right(r) for r in sampled.rollouts],
        "answers": [_answer(r, thinking) for r in sampled.rollouts],
        "format": [r.reward.format for r in sampled.rollouts],
        "lengths": [len(r.completion.tokens) for r in sampled.rollouts],
        "greedy": _right(first),
        "example": {
            "prompt": greedy.problem.prompt.strip(),
            "answer": greedy.problem.answer,
            "response": first.text,
            "correct": _right(first),
        },
    }


def _right(rollout: Rollout) -> bool | None:
    """None while undecided."""
    return None if rollout.reward.accuracy is None else rollout.reward.accuracy == 1.0


def _answer(rollout: Rollout, thinking: bool) -> str:
    """What the answer votes for; one that was cut off by the length limit votes for nothing."""
    return extract_answer(split_completion(rollout.text, thinking)[1]) if rollout.completion.finished else ""


def _summarise(rows: list[dict[str, Any]], family: str, settings: EvaluationSettings) -> Evaluation:
    verdicts = [row["verdicts"] for row in rows]
    rights = [sum(v is True for v in row) for row in verdicts]
    unsures = [sum(v is None for v in row) for row in verdicts]
    pass_1, low, high = mean_ci([right / settings.samples for right in rights])
    greedy, greedy_unsure = (sum(row["greedy"] is value for row in rows) for value in (True, None))
    n, asked = len(rows), len(rows) * settings.samples
    ks = [k for k in (2, 4, 8, 16, 32, 64) if k <= settings.samples]
    return Evaluation(
        family=family,
        split=settings.split,
        n=n,
        samples=settings.samples,
        pass_at_1=pass_1,
        pass_at_1_bounds=(pass_1, (sum(rights) + sum(unsures)) / asked),
        ci95=(low, high),
        greedy=greedy / n,
        greedy_bounds=(greedy / n, (greedy + greedy_unsure) / n),
        greedy_ci95=wilson(greedy, n),
        pass_at_k={str(k): fmean(pass_at_k(settings.samples, right, k) for right in rights) for k in ks},
        majority_at_k=fmean(majority(row["answers"], row["verdicts"]) for row in rows),
        format=fmean(value for row in rows for value in row["format"]),
        response_length=fmean(value for row in rows for value in row["lengths"]),
        undecided=sum(unsures),
        greedy_undecided=greedy_unsure,
        examples=[row["example"] for row in rows[: settings.show]],
    )
