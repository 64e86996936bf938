from statistics import fmean, pstdev

import pytest
import torch

from ziphius.engine.complete import Completion
from ziphius.reason import grpo
from ziphius.reason.grpo import GRPOSource, advantages, hash_seed
from ziphius.reason.prompts import demonstration
from ziphius.reason.rewards import Reward
from ziphius.reason.rollout import Group, Rollout, TaskMix
from ziphius.reason.settings import GRPOSettings
from ziphius.tasks.base import Problem
from ziphius.train.losses import batch_logprobs, next_token_loss, policy_loss
from ziphius.train.metrics import read_metrics
from ziphius.train.place import Place
from ziphius.train.settings import LossSettings, PolicySettings, TrainSettings
from ziphius.train.sources import SampleSource
from ziphius.train.trainer import Trainer

from .bandit import LETTERS, QUESTIONS, Bandit

PROMPT = [0, 7, 8]


def rollout(total, length=4, finished=True):
    logprobs = [-0.5 - 0.1 * i for i in range(length)]
    tokens = [9 + i for i in range(length)]
    return Rollout(Completion(tokens, logprobs, finished), "text", Reward(total, total, 1.0, 1.0))


def group(*rollouts, prompt=PROMPT):
    return Group(Problem("bandit", "q", "a"), prompt, list(rollouts))


def make(model, tokenizer, tasks=None, place=None, **settings):
    settings = GRPOSettings(**({"group_size": 4, "prompts_per_step": 6, "max_new_tokens": 8} | settings))
    tasks = tasks or TaskMix([(Bandit(), 1.0)], 0)
    return GRPOSource(model, tokenizer, tasks, settings, place or Place(), seed=0, thinking=False)


# --- advantages ------------------------------------------------------------------------------------------------------


def test_advantages_are_deviations_within_the_group():
    rewards = [1.0, 0.0, 0.5, 0.0]
    made = group(*map(rollout, rewards))
    mean, deviation = fmean(rewards), pstdev(rewards)
    assert advantages(made, GRPOSettings()) == pytest.approx([(r - mean) / deviation for r in rewards], rel=1e-4)
    assert advantages(made, GRPOSettings(normalise=False)) == pytest.approx([r - mean for r in rewards])


def test_equal_rewards_give_none():
    for reward in (0.1, 1 / 3):
        assert advantages(group(*[rollout(reward)] * 7), GRPOSettings()) == [0.0] * 7


def test_undecided_answers_are_left_out_of_mean_and_loss():
    made = group(rollout(1.0), rollout(None), rollout(0.0))
    assert advantages(made, GRPOSettings(normalise=False)) == [0.5, None, -0.5]
    assert advantages(group(rollout(None), rollout(None)), GRPOSettings()) == [None, None]


def test_cut_off_answers():
    made = group(rollout(1.0), rollout(0.0, finished=False), rollout(0.4))
    plain = {"normalise": False}
    assert advantages(made, GRPOSettings(overlong="keep", **plain)) == pytest.approx(
        [1 - 1.4 / 3, -1.4 / 3, 0.4 - 1.4 / 3]
    )
    assert advantages(made, GRPOSettings(overlong="mask", **plain)) == pytest.approx([0.3, None, -0.3])


def test_soft_punishment_grows_over_the_margin():
    """DAPO equation 13: nothing up to limit − margin, then a straight line to −1 at the limit."""
    settings = GRPOSettings(overlong="soft", overlong_margin=4, max_new_tokens=10, normalise=False)
    lengths = [3, 6, 7, 8, 9, 10]
    penalties = [0, 0, -0.25, -0.5, -0.75, -1]
    mean = fmean(penalties)
    found = advantages(group(*(rollout(1.0, length) for length in lengths)), settings)
    assert found == pytest.approx([penalty - mean for penalty in penalties])
    with pytest.raises(ValueError, match=r"overlong_margin \(16\) exceeds max_new_tokens \(8\); lower it"):
        GRPOSettings(overlong="soft", max_new_tokens=8)


# --- batches ---------------------------------------------------------------------------------------------------------


def loss_of(model, source, groups, **policy):
    """The loss that the loop would reach: over all micro-batches, divided by what they bring."""
    (batches,) = source._mini_batches(groups)
    norm = sum(batch.norm for batch in batches)
    plain = LossSettings(mtp_weight=0.0, balance_weight=0.0)
    parts = [policy_loss(model, batch, plain, PolicySettings(importance_cap=None, **policy), norm) for batch in batches]
    return sum(part.total.item() for part in parts), batches, norm


@pytest.mark.parametrize("micro_tokens", [4096, 16])
@pytest.mark.parametrize("mean", ["token", "sequence", "constant"])
def test_means_by_hand(model, tokenizer, monkeypatch, mean, micro_tokens):
    """On policy every ratio is 1, so the loss is minus the chosen mean of the advantages."""
    monkeypatch.setattr(grpo, "_ROWS", 1)
    groups = [
        group(rollout(1.0, 2), rollout(0.0, 6), rollout(0.0, 5), rollout(None, 8)),
        group(rollout(1.0, 3), rollout(1.0, 7), prompt=[0, 5]),  # nothing to learn, but counted
    ]
    source = make(model, tokenizer, mean=mean, micro_tokens=micro_tokens, normalise=False)
    lengths, values = [2, 6, 5, 3, 7], [2 / 3, -1 / 3, -1 / 3, 0, 0]
    expected = {
        "token": sum(a * n for a, n in zip(values, lengths, strict=True)) / sum(lengths),
        "sequence": fmean(values),
        "constant": sum(a * n for a, n in zip(values, lengths, strict=True)) / (5 * 8),
    }[mean]
    loss, batches, norm = loss_of(model, source, groups)
    assert loss == pytest.approx(-expected, abs=1e-6)
    assert norm == pytest.approx(sum(lengths) if mean == "token" else 5)
    assert len(batches) == (1 if micro_tokens == 4096 else 2)


def test_batches_carry_the_answers(model, tokenizer):
    source = make(model, tokenizer)
    one, two = rollout(1.0, 3), rollout(0.0, 6)
    (batches,) = source._mini_batches([group(one, two)])
    (batch,) = batches
    width = batch.tokens.shape[1]
    for row, (answer, sign) in enumerate([(one, 1), (two, -1)]):
        span = slice(3, 3 + len(answer.completion.tokens))
        expected = PROMPT + answer.completion.tokens + [tokenizer.pad_id] * width
        assert batch.tokens[row].tolist() == expected[:width]
        assert batch.advantages[row, span].tolist() == pytest.approx([sign] * len(answer.completion.tokens), rel=1e-4)
        assert batch.sampler_logprobs[row, span].tolist() == pytest.approx(answer.completion.logprobs)
        outside = torch.ones(width, dtype=torch.bool)
        outside[span] = False
        assert batch.weights[row, outside].abs().sum() == 0
        assert batch.valid[row].sum() == span.stop
    assert batch.weights[2:].abs().sum() == 0  # rows that only fill the batch up
    assert batch.token_count == 6 + 9
    assert batch.old_logprobs is None
    assert batch.reference_logprobs is None


def test_nothing_to_learn_weighs_nothing(model, tokenizer):
    source = make(model, tokenizer)
    for groups, norm in [([group(rollout(1.0), rollout(1.0))], 8), ([group(rollout(None))], 0), ([], 0)]:
        ((batch,),) = source._mini_batches(groups)
        assert batch.weights.sum() == 0
        assert batch.token_count == 0
        assert batch.norm == norm
        parts = policy_loss(model, batch, LossSettings(), PolicySettings(), 1.0)
        parts.total.backward()
        assert parts.sums["on"] == parts.sums["loss"] == 0


def test_the_reference_pulls_on_every_answer(model, tokenizer):
    """Answers without an advantage still count for the KL."""
    source = make(model, tokenizer, policy={"kl_weight": 0.1})
    (batches,) = source._mini_batches([group(rollout(1.0, 3), rollout(1.0, 5))])
    assert sum(int((batch.weights > 0).sum()) for batch in batches) == 8
    assert torch.allclose(batches[0].reference_logprobs, batch_logprobs(source.reference, batches[0]))
    ((nothing,),) = source._mini_batches([group(rollout(None))])
    assert nothing.reference_logprobs is not None


def test_mini_batches_remember_the_policy_that_wrote_them(model, tokenizer):
    source = make(model, tokenizer, mini_batches=2, temperature=0.8)
    groups = [group(rollout(1.0, n), rollout(0.0, n + 1)) for n in (2, 3, 4)]
    first, second = source._mini_batches(groups)
    answers = [sum(int((batch.weights > 0).any(1).sum()) for batch in batches) for batches in (first, second)]
    assert answers == [4, 2]
    for batch in first + second:
        assert torch.allclose(batch.old_logprobs, batch_logprobs(model, batch, 0.8))


# --- collecting ------------------------------------------------------------------------------------------------------


def scripted(source, rewards_of):
    """Replaces the rollouts of a source: `rewards_of(number of the problem)`; returns what was asked for."""
    asked = []

    def roll(drawn, seed):
        asked.append([index for index, _ in drawn])
        return [group(*(rollout(r) for r in rewards_of(index))) for index, _ in drawn]

    source.tasks = type("Indices", (), {"problem": lambda self, split, index: (index, split)})()
    source._roll_out = roll
    return asked


def test_dynamic_sampling_draws_on_until_groups_are_mixed(model, tokenizer):
    source = make(model, tokenizer, dynamic_sampling=True, max_rounds=4)
    asked = scripted(source, lambda index: (1.0, 0.0) if index % 3 == 0 else (1.0, 1.0))
    groups = source._collect(0)
    assert asked == [list(range(6)), list(range(6, 12)), list(range(12, 18))]
    assert len(groups) == 6
    assert all(group.is_mixed for group in groups)
    source._collect(1)
    assert asked[3] == list(range(24, 30))  # never a problem twice


def test_dynamic_sampling_gives_up_and_fills_with_what_there_is(model, tokenizer):
    source = make(model, tokenizer, dynamic_sampling=True, max_rounds=2)
    asked = scripted(source, lambda index: (1.0, 0.0) if index == 8 else (1.0, 1.0))
    groups = source._collect(0)
    assert len(asked) == 2
    assert [group.is_mixed for group in groups] == [True] + [False] * 5


def test_without_it_one_round_is_taken_as_it_is(model, tokenizer):
    source = make(model, tokenizer)
    asked = scripted(source, lambda index: (1.0, 1.0))
    assert len(source._collect(2)) == 6
    assert asked == [list(range(48, 54))]


def test_ranks_share_the_prompts(model, tokenizer):
    asked = []
    for rank in range(4):
        source = make(model, tokenizer, place=Place(rank, 4))
        its = scripted(source, lambda index: (1.0, 0.0))
        assert len(source._collect(0)) == len(its[0])
        asked += its[0]
    assert sorted(asked) == list(range(6))


def test_seeds_differ():
    seeds = {hash_seed(a, b, c) for a in range(9) for b in range(9) for c in range(9)}
    assert len(seeds) == 729
    assert all(0 <= seed < 2**63 for seed in seeds)


# --- the source ------------------------------------------------------------------------------------------------------

METRICS = {
    "reward", "reward_accuracy", "reward_format", "reward_language", "reward_std", "groups_mixed", "response_length",
    "response_length_max", "truncated", "undecided", "rollout_tokens", "rollout_seconds",
}  # fmt: skip


def test_metrics_by_hand(model, tokenizer):
    source = make(model, tokenizer, prompts_per_step=2)
    made = [group(rollout(1.0, 2), rollout(0.0, 6, finished=False)), group(rollout(None, 4), rollout(1.0, 4))]
    source._collect = lambda step: made
    metrics = source.next_step(0).metrics
    assert metrics.keys() == METRICS
    assert metrics.pop("rollout_seconds") >= 0
    assert metrics == pytest.approx({
        "reward": 2 / 3, "reward_accuracy": 0.5, "reward_format": 1.0, "reward_language": 1.0, "reward_std": 0.25,
        "groups_mixed": 0.5, "response_length": 4.0, "response_length_max": 6.0, "truncated": 0.25, "undecided": 0.25,
        "rollout_tokens": 16.0,
    })  # fmt: skip


def test_pending_mini_batches_are_part_of_the_state(model, tokenizer):
    settings = {"mini_batches": 3, "policy": {"kl_weight": 0.1}, "rewards": {"language": 1.0}}
    source = make(model, tokenizer, **settings)
    assert source.next_step(0).metrics
    state = source.state_dict()
    other = make(model, tokenizer, **settings)
    with torch.no_grad():
        next(other.reference.parameters()).zero_()
    other.load_state_dict(state)
    for ours, theirs in zip(other.reference.parameters(), source.reference.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    for step in (1, 2, 3):
        one, two = source.next_step(step), other.next_step(step)
        assert bool(one.metrics) == (step == 3)
        assert len(one.micro_batches) == len(two.micro_batches)
        for ours, theirs in zip(one.micro_batches, two.micro_batches, strict=True):
            for name, value in vars(ours).items():
                other_value = getattr(theirs, name)
                assert torch.equal(value, other_value) if torch.is_tensor(value) else value == other_value, name


def test_the_reference_becomes_the_policy_in_time(model, tokenizer):
    """Every 4 steps, also where these are not the steps that roll out (every 3)."""
    source = make(model, tokenizer, mini_batches=3, reference_refresh=4, policy={"kl_weight": 0.1})
    source._collect = lambda step: [group(rollout(1.0), rollout(0.0))]
    weight = model.model.norm.weight
    refreshed = []
    for step in range(13):
        with torch.no_grad():
            weight.fill_(step)
        source.next_step(step)
        refreshed.append(float(source.reference.model.norm.weight[0].detach()))
    assert refreshed == [1, 1, 1, 1, 1, 1, 6, 6, 6, 9, 9, 9, 12]


# --- learning --------------------------------------------------------------------------------------------------------


def imitate_letters(model, tokenizer, folder):
    """Teach the form: any letter, then the end."""
    problems = [Problem("bandit", question, letter) for question in QUESTIONS for letter in LETTERS]
    samples = [demonstration(tokenizer, problem, None) for problem in problems]
    source = SampleSource(samples, Place(), 16, 12, 12, tokenizer.pad_id, 0)
    loss = lambda m, batch, norm: next_token_loss(m, batch, LossSettings(), norm)
    settings = TrainSettings(steps=40, precision="fp32", optimizer={"lr": 1e-2})
    Trainer(model, source, loss, settings, folder).run()


@pytest.mark.parametrize("options", [{}, {"mini_batches": 2, "normalise": False, "mean": "sequence"}])
def test_it_learns_from_rewards_alone(model, tokenizer, tmp_path, options):
    imitate_letters(model, tokenizer, tmp_path / "sft")
    policy = PolicySettings()
    source = make(model, tokenizer, group_size=8, prompts_per_step=12, max_new_tokens=4, policy=policy, **options)
    loss = lambda m, batch, norm: policy_loss(m, batch, LossSettings(mtp_weight=0.1), policy, norm)
    settings = TrainSettings(steps=40, precision="fp32", optimizer={"lr": 5e-3, "weight_decay": 0.0})
    Trainer(model, source, loss, settings, tmp_path / "rl").run()
    rows = [row for row in read_metrics(tmp_path / "rl") if "reward" in row]
    assert 0.1 < rows[0]["reward_accuracy"] < 0.45  # one letter in four
    assert fmean(row["reward_accuracy"] for row in rows[-4:]) > 0.85
    assert all(row["mismatch"] < 1e-3 for row in rows if "mismatch" in row)


def test_undecided_answers_do_not_teach(model, tokenizer, tmp_path):
    """Where the checker always fails nothing moves, and nothing is counted as wrong."""
    tasks = TaskMix([(Bandit(), 1.0)], 0)
    source = make(model, tokenizer, tasks, rewards={"language": 1.0})
    source._collect = lambda step: [group(rollout(None), rollout(None))]
    loss = lambda m, batch, norm: policy_loss(m, batch, LossSettings(), PolicySettings(), norm)
    trainer = Trainer(model, source, loss, TrainSettings(steps=3, precision="fp32"), tmp_path)
    before = trainer.weights.master.clone()
    row = trainer.step()
    assert (row["undecided"], row["reward"], row["tokens"], row["skipped"]) == (1.0, 0.0, 0, 0)
    assert torch.equal(trainer.weights.master, before)
