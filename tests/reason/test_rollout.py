from collections import Counter

import pytest

from ziphius.engine.complete import Completion, complete
from ziphius.engine.random import sample_key
from ziphius.engine.request import Request
from ziphius.engine.settings import SamplingSettings
from ziphius.reason.prompts import demonstration, prompt_tokens, worked_answer
from ziphius.reason.rewards import Reward, RewardWeights
from ziphius.reason.rollout import Group, Rollout, TaskMix, roll_out, rollout_engine
from ziphius.tasks.base import Problem

from .bandit import Bandit

SAMPLING = SamplingSettings(temperature=1.0, max_new_tokens=6)


def test_groups_hold_the_samplers_answers_scored(model, tokenizer):
    family = Bandit()
    drawn = [(family, family.problem("train", index)) for index in range(3)]
    engine = rollout_engine(model, tokenizer)
    weights = RewardWeights(language=1.0)
    groups = roll_out(engine, tokenizer, drawn, SAMPLING, 3, samples=4, thinking=True, weights=weights)
    prompts = [tokenizer.prompt_ids(problem.prompt, thinking=True) for _, problem in drawn]
    seeded = [SAMPLING.model_copy(update={"seed": sample_key(3, place)}) for place in range(3)]
    found = complete(engine, [Request(p, s, samples=4) for p, s in zip(prompts, seeded, strict=True)])
    assert [group.prompt for group in groups] == prompts
    assert [group.problem for group in groups] == [problem for _, problem in drawn]
    for group, completions in zip(groups, found, strict=True):
        assert [rollout.completion for rollout in group.rollouts] == completions
        for rollout in group.rollouts:
            assert tokenizer.decode(rollout.completion.tokens).startswith(rollout.text)
            assert rollout.reward.total is not None


def test_the_end_token_is_no_part_of_the_text(model, tokenizer, monkeypatch):
    family = Bandit()
    right, cut = (Completion([*tokenizer.encode("c"), tokenizer.eos_id][:n], [0.0] * n, n == 2) for n in (2, 1))
    monkeypatch.setattr("ziphius.reason.rollout.complete", lambda *_: [[right, cut]])
    drawn = [(family, family.problem("train", 0))]
    (group,) = roll_out(None, tokenizer, drawn, SAMPLING, 0, samples=2, thinking=False, weights=RewardWeights())
    assert [rollout.text for rollout in group.rollouts] == ["c", "c"]
    assert group.totals == [2.0, 0.0]  # what was cut off is no answer
    assert group.is_mixed


def group_of(*totals):
    return Group(
        Problem("p", "q", "a"), [0], [Rollout(Completion([5], [0.0], True), "", Reward(t, t, 1, 1)) for t in totals]
    )


def test_mixed():
    assert group_of(1.0, 0.0).is_mixed
    assert not group_of(1.0, 1.0, None).is_mixed
    assert not group_of(None, None).is_mixed
    assert group_of(1.0, None, 0.5).totals == [1.0, 0.5]


def test_the_mix_gives_the_same_problem_for_the_same_index():
    families = [(Bandit("one"), 3.0), (Bandit("two"), 1.0), (Bandit("none"), 0.0)]
    drawn = [TaskMix(families, 7).problem("train", index) for index in range(400)]
    assert drawn == [TaskMix(families, 7).problem("train", index) for index in range(400)]
    counts = Counter(family.name for family, _ in drawn)
    assert counts["two"] == pytest.approx(100, abs=35)
    assert counts["none"] == 0
    assert drawn != [TaskMix(families, 8).problem("train", index) for index in range(400)]
    for index, (family, problem) in enumerate(drawn):
        assert problem == family.problem("train", index)
    assert TaskMix(families[:1], 0).problem("train", 5)[1] == families[0][0].problem("train", 5)


def test_demonstrations_train_on_the_answer_alone(tokenizer):
    problem = Problem("p", "1 + 2", "3")
    for trace, text in [("one and two", "one and two\n</think>\n\n3"), (None, "3")]:
        tokens, weights = demonstration(tokenizer, problem, trace)
        prompt = prompt_tokens(tokenizer, problem, thinking=trace is not None)
        assert tokens[: len(prompt)] == prompt
        assert weights == [0.0] * len(prompt) + [1.0] * (len(tokens) - len(prompt))
        assert tokenizer.decode(tokens[len(prompt) : -1]) == text == worked_answer(trace, "3")
        assert tokens[-1] == tokenizer.eos_id
        assert (prompt[-1] == tokenizer.end_think_id) == (trace is None)
