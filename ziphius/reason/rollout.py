"""Groups of sampled answers to problems, scored by rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from ziphius.engine.complete import Completion, complete
from ziphius.engine.engine import Engine
from ziphius.engine.random import sample_key
from ziphius.engine.request import Request
from ziphius.engine.settings import EngineSettings, SamplingSettings
from ziphius.model.transformer import Transformer
from ziphius.reason.prompts import prompt_tokens
from ziphius.reason.rewards import Reward, RewardWeights, Sampled, score_all
from ziphius.tasks.base import Family, Problem
from ziphius.text.tokenizer import Tokenizer


@dataclass
class Rollout:
    """One sampled answer: its tokens after the prompt, its text without the end token, and its rewards."""

    completion: Completion
    text: str
    reward: Reward


@dataclass
class Group:
    """All answers to one problem."""

    problem: Problem
    prompt: list[int]
    rollouts: list[Rollout]

    @property
    def totals(self) -> list[float]:
        """Rewards of the decided answers."""
        return [r.reward.total for r in self.rollouts if r.reward.total is not None]

    @property
    def is_mixed(self) -> bool:
        """Whether the answers differ in reward, so that there is something to learn."""
        return len(set(self.totals)) > 1


class TaskMix:
    """Problems of several families by weight: problem `index` is always the same one."""

    def __init__(self, families: Sequence[tuple[Family, float]], seed: int) -> None:
        self.families, self.seed = list(families), seed

    def problem(self, split: str, index: int) -> tuple[Family, Problem]:
        choices, weights = zip(*self.families, strict=True)
        family = choices[0] if len(choices) == 1 else Random(f"{self.seed}/{index}").choices(choices, weights)[0]
        return family, family.problem(split, index)


def rollout_engine(model: Transformer, tokenizer: Tokenizer) -> Engine:
    """An engine on the live weights, for the caller's autocast, that does the same twice to the last bit.

    It does not speculate, since how much pays is a matter of timing.
    """
    return Engine(model, tokenizer, EngineSettings(speculation="off"))


def roll_out(
    engine: Engine,
    tokenizer: Tokenizer,
    drawn: Sequence[tuple[Family, Problem]],
    settings: SamplingSettings,
    seed: int,
    *,
    samples: int,
    thinking: bool,
    weights: RewardWeights,
) -> list[Group]:
    """`samples` scored answers to each problem, in the autocast that the engine was made in."""
    prompts = [prompt_tokens(tokenizer, problem, thinking) for _, problem in drawn]
    requests = [
        Request(
            prompt,
            settings.model_copy(update={"seed": sample_key(seed, place)}),
            thinking=thinking,
            samples=samples,
            stream=False,
        )
        for place, prompt in enumerate(prompts)
    ]
    sampled = complete(engine, requests)
    texts = [
        [tokenizer.decode(c.tokens[:-1] if c.finished else c.tokens) for c in completions] for completions in sampled
    ]
    asked = [
        Sampled(family, problem, text, completion.finished)
        for (family, problem), completions, ours in zip(drawn, sampled, texts, strict=True)
        for completion, text in zip(completions, ours, strict=True)
    ]
    rewards = iter(score_all(asked, thinking, weights))
    return [
        Group(problem, prompt, [Rollout(c, text, next(rewards)) for c, text in zip(completions, ours, strict=True)])
        for (_, problem), prompt, completions, ours in zip(drawn, prompts, sampled, texts, strict=True)
    ]
