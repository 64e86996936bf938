"""The doctor on charts drawn by hand, and on small real runs that are ill on purpose."""

import json
import time
from functools import partial
from random import Random

import pytest
import torch

from ziphius.model.presets import ladder
from ziphius.model.transformer import Transformer
from ziphius.reason.doctor import Context, diagnose, diagnose_run, verdict
from ziphius.reason.grpo import GRPOSettings, GRPOSource
from ziphius.reason.rollout import TaskMix
from ziphius.tasks.base import Family, Problem, Verdict
from ziphius.text.tokenizer import train_tokenizer
from ziphius.train.distributed import World
from ziphius.train.losses import LossSettings, PolicySettings, policy_loss
from ziphius.train.optim import OptimizerSettings
from ziphius.train.schedule import Schedule
from ziphius.train.trainer import StepData, Trainer, TrainSettings

STEPS = 60


def chart(steps=STEPS, **gauges):
    """Rows of a run that learns, with some noise; `gauges` replace one by a value or a function of progress."""
    rng = Random(0)
    healthy = {
        "loss": 0.01,
        "grad_norm": 0.4,
        "skipped": 0,
        "reward": lambda x: 0.4 + 0.8 * x + rng.gauss(0, 0.03),
        "reward_accuracy": lambda x: 0.1 + 0.7 * x + rng.gauss(0, 0.03),
        "reward_format": lambda x: 0.7 + 0.3 * x,
        "groups_mixed": lambda x: 0.7 - 0.4 * x,
        "undecided": 0.0,
        "response_length": lambda x: 40 + 20 * x,
        "truncated": lambda x: 0.1 * (1 - x),
        "entropy": lambda x: 0.4 - 0.3 * x + rng.gauss(0, 0.01),
        "clipped": 0.01,
        "kl": lambda x: 0.1 * x,
        "mismatch": lambda x: 0.008 + rng.gauss(0, 0.001),
        "load_violation": lambda x: 0.8 + rng.gauss(0, 0.1),
    }
    at = lambda value, x: value(x) if callable(value) else value
    rows = []
    for step in range(steps):
        x = step / (steps - 1)
        rows.append({"step": step + 1} | {key: at(value, x) for key, value in (healthy | gauges).items()})
    return rows


def test_a_healthy_run_has_no_findings_at_any_step():
    rows = chart()
    assert [diagnose(rows[:end]) for end in range(STEPS + 1)] == [[]] * (STEPS + 1)
    assert verdict([]) == "healthy: no illness found"


ILLNESSES = {
    "groups all wrong": {"groups_mixed": 0.0, "reward_accuracy": 0.01},
    "groups all right": {"groups_mixed": 0.03, "reward_accuracy": 0.99},
    "groups all alike": {"groups_mixed": 0.01, "reward_accuracy": 0.4},
    "format not learned": {"reward_format": 0.1},
    "verifier failing": {"undecided": 0.4},
    "length exploding": {"response_length": lambda x: 40 + 80 * x, "truncated": lambda x: 0.7 * x},
    "answers cut off": {"truncated": 0.6},
    "length collapsing": {"response_length": lambda x: 40 - 35 * x, "reward_accuracy": 0.11},
    "accuracy at chance": {"reward_accuracy": 0.11},
    "entropy collapsed": {"entropy": lambda x: 0.3 * 0.001**x, "reward_accuracy": 0.3},
    "entropy exploding": {"entropy": lambda x: 0.3 + 3 * x},
    "format hacking": {"reward": lambda x: 0.5 + 0.4 * x, "reward_accuracy": lambda x: 0.5 - 0.3 * x},
    "policy far from reference": {"kl": lambda x: 3 * x},
    "sampler and trainer differ": {"mismatch": 0.3},
    "updates clipped": {"clipped": 0.4},
    "updates skipped": {"skipped": lambda x: int(30 * x)},
    "routers drifting": {"load_violation": lambda x: 0.8 + 2 * x},
}


@pytest.mark.parametrize("name", ILLNESSES)
def test_each_illness_is_found_alone_with_its_numbers_and_its_mend(name):
    (finding,) = diagnose(chart(**ILLNESSES[name]))
    assert finding.name == name
    assert finding.step == STEPS
    assert any(letter.isdigit() for letter in finding.what)
    assert finding.what.endswith(".")
    assert finding.mend.endswith(".")
    assert name in str(finding)


def test_the_mend_names_settings_that_exist():
    fields = {"precision", "bias_update_speed", "lr", "clip", "warmup_steps", "balance_weight", "gate_target"}
    fields |= {*GRPOSettings.model_fields, *(f"policy.{key}" for key in PolicySettings.model_fields)}
    fields |= {"accuracy", "format", "language", "partial_credit"}
    for gauges in ILLNESSES.values():
        (finding,) = diagnose(chart(**gauges))
        words = {word.strip(".,:;()'") for word in finding.mend.split()}
        assert words & fields or "verify" in finding.mend
        assert {word for word in words if "_" in word} <= fields


def test_a_mismatch_that_grows_is_noticed_while_it_is_small():
    (finding,) = diagnose(chart(mismatch=lambda x: 0.005 + 0.03 * x))
    assert (finding.name, finding.severity) == ("sampler and trainer differ", "warning")


def test_a_loss_that_is_not_a_number():
    rows = chart()
    rows[-3]["loss"] = float("nan")
    (finding,) = diagnose(rows)
    assert (finding.name, finding.severity) == ("updates skipped", "warning")


def test_a_skip_long_ago_is_forgiven():
    assert diagnose(chart(skipped=lambda x: 3 if x > 0.5 else 0)) == []


def test_a_failing_checker_is_not_taken_for_hard_problems():
    found = diagnose(chart(undecided=1.0, groups_mixed=0.0, reward=0.0, reward_accuracy=0.0))
    assert [finding.name for finding in found] == ["verifier failing"]


def test_steps_without_rollouts_or_tokens_are_left_out():
    rows = chart()
    kept = ("step", "loss", "grad_norm", "skipped")
    mixed = []
    for row in rows:  # two updates from one set of rollouts, the second without a token to learn from
        mixed += [row, {key: row[key] for key in kept} | {"entropy": 0.0, "clipped": 0.0, "mismatch": 0.0}]
    assert diagnose(mixed) == []


def test_a_router_that_always_picks_the_same_experts_is_ill_from_the_start():
    rows = chart(load_violation=2.8)
    assert diagnose(rows) == []
    (finding,) = diagnose(rows, Context(worst_violation=3.0))
    assert (finding.name, finding.severity) == ("routers drifting", "ill")


def test_a_run_folder(tmp_path):
    for name, rows in {"01-pretrain": [{"step": 1, "loss": 3.0}], "03-rl": chart(), "05-rl": chart(clipped=0.4)}.items():
        (tmp_path / "stages" / name).mkdir(parents=True)
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "stages" / name / "metrics.jsonl").write_text(lines + '{"step": 61, "lo')
    found = diagnose_run(tmp_path)
    assert {name: [f.name for f in findings] for name, findings in found.items()} == {
        "03-rl": [],
        "05-rl": ["updates clipped"],
    }
    assert verdict(found["05-rl"]) == "ill: 1 illness, 0 warning(s)"


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="stages"):
        diagnose_run(tmp_path)


# --- real runs -------------------------------------------------------------------------------------------------------


class Toy(Family):
    """Asks for a letter. `rule` judges the bare answer."""

    name = "toy"

    def __init__(self, rule):
        self.rule = rule

    def draw(self, ticket):
        return Problem(self.name, f"say {ticket}", "a")

    def verify(self, problem, answer):
        return Verdict(self.rule(answer), "")


class Constant:
    """Stands for a batch source: the rollouts of another, after `before` was called on the model."""

    def __init__(self, source, before):
        self.source, self.before = source, before

    def next_step(self, step) -> StepData:
        self.before(self.source.model, False)
        data = self.source.next_step(step)
        self.before(self.source.model, True)
        return data

    def state_dict(self):
        return {}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["say 1 2 3 4 5 6 7 8 9 0"], 280)
