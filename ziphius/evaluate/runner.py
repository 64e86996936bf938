"""How good a model is at a family of problems: sampled and greedy, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
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
from ziphius.train.distributed import World


@dataclass
class Evaluation:
    """Shares are in [0, 1]; intervals are 95%, clustered by problem where there are several samples each."""

    family: str
    split: str
    n: int
    samples: int
    pass_at_1: float
    ci95: tuple[float, float]
    greedy: float
    greedy_ci95: tuple[float, float]
    pass_at_k: dict[str, float]
    majority_at_k: float
    format: float
    response_length: float
    undecided: int
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
    world: World | None = None,
) -> Evaluation:
    """Ask the model `settings.n` problems, shared among the ranks; every rank gets the same result.

    Undecided answers (the checker failed) are left out of the shares and counted in `undecided`.
    """
    world = world or World()
    problems = family.problems(settings.split, settings.n)
    mine = problems[world.rank :: world.size]
    engine = rollout_engine(model, tokenizer)
    sampled = _ask(engine, tokenizer, family, mine, settings, thinking, seed * world.size + world.rank)
    greedy = _ask(engine, tokenizer, family, mine, settings, thinking, seed, greedy=True)
    parts = world.gather([_tally(s, g, thinking) for s, g in zip(sampled, greedy, strict=True)])
    rows = [parts[i % world.size][i // world.size] for i in range(len(problems))]
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
    verdicts = [None if r.reward.accuracy is None else r.reward.accuracy == 1.0 for r in sampled.rollouts]
    first = greedy.rollouts[0]
    return {
        "verdicts": verdicts,
        "answers": [_answer(r, thinking) for r in sampled.rollouts],
        "format": [r.reward.format for r in sampled.rollouts],
        "lengths": [len(r.completion.tokens) for r in sampled.rollouts],
        "greedy": None if first.reward.accuracy is None else first.reward.accuracy == 1.0,
        "example": {
            "prompt": greedy.problem.prompt.strip(),
            "answer": greedy.problem.answer,
            "response": first.text,
            "correct": first.reward.accuracy == 1.0,
        },
    }


def _answer(rollout: Rollout, thinking: bool) -> str:
    """What the answer votes for; one that was cut off by the length limit votes for nothing."""
    return extract_answer(split_completion(rollout.text, thinking)[1]) if rollout.completion.finished else ""


def _summarise(rows: list[dict[str, Any]], family: str, settings: EvaluationSettings) -> Evaluation:
    decided = [[v for v in row["verdicts"] if v is not None] for row in rows]
    scored = [verdicts for verdicts in decided if verdicts]
    pass_1, low, high = mean_ci([sum(v) / len(v) for v in scored]) if scored else (0.0, 0.0, 1.0)
    greedy = [row["greedy"] for row in rows if row["greedy"] is not None]
    votes = [majority(row["answers"], row["verdicts"]) for row in rows]
    counted = [vote for vote in votes if vote is not None]
    ks = [k for k in (2, 4, 8, 16, 32, 64) if k <= settings.samples]
    full = [v for v in scored if len(v) == settings.samples]
    return Evaluation(
        family=family,
        split=settings.split,
        n=len(rows),
        samples=settings.samples,
        pass_at_1=pass_1,
        ci95=(low, high),
        greedy=sum(greedy) / max(len(greedy), 1),
        greedy_ci95=wilson(sum(greedy), len(greedy)) if greedy else (0.0, 1.0),
        pass_at_k={str(k): _mean([pass_at_k(len(v), sum(v), k) for v in full]) for k in ks},
        majority_at_k=_mean(counted),
        format=_mean([value for row in rows for value in row["format"]]),
        response_length=_mean([value for row in rows for value in row["lengths"]]),
        undecided=sum(v is None for row in rows for v in row["verdicts"]),
        examples=[row["example"] for row in rows[: settings.show]],
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
