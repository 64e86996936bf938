"""The doctor on charts drawn by hand, and on small real runs that are ill on purpose."""

import copy
import json
from random import Random

import pytest
import torch

from ziphius.model.presets import ladder
from ziphius.model.transformer import Transformer
from ziphius.reason.chart import Context
from ziphius.reason.doctor import diagnose, diagnose_run, verdict
from ziphius.reason.grpo import GRPOSource
from ziphius.reason.prompts import prompt_tokens
from ziphius.reason.rewards import RewardWeights
from ziphius.reason.rollout import TaskMix
from ziphius.reason.settings import GRPOSettings
from ziphius.reason.watch import Watch
from ziphius.tasks.base import Family, Problem, Verdict
from ziphius.text.learn import train_tokenizer
from ziphius.train.losses import next_token_loss, policy_loss
from ziphius.train.metrics import read_metrics
from ziphius.train.place import Place
from ziphius.train.schedule import Schedule
from ziphius.train.settings import LossSettings, OptimizerSettings, PolicySettings, TrainSettings
from ziphius.train.sources import SampleSource
from ziphius.train.trainer import Trainer

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
    "policy breaking": {"reward_accuracy": lambda x: 0.6 - 0.4 * x, "reward": lambda x: 1.5 - 0.5 * x},
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


def test_a_mismatch_that_grows_is_noticed_while_it_is_small():
    (finding,) = diagnose(chart(mismatch=lambda x: 0.005 + 0.03 * x))
    assert (finding.name, finding.severity) == ("sampler and trainer differ", "warning")


@pytest.mark.parametrize("bad", [float("nan"), None])
def test_a_loss_that_is_not_a_number(bad):
    rows = chart()
    rows[-3]["loss"] = bad
    (finding,) = diagnose(rows)
    assert (finding.name, finding.severity) == ("updates skipped", "warning")


def test_a_skip_long_ago_is_forgiven_but_not_a_storm():
    assert diagnose(chart(skipped=lambda x: 3 if x > 0.5 else 0)) == []
    (warning,) = diagnose(chart(skipped=lambda x: 8 if x > 0.5 else 0))
    assert (warning.name, warning.severity) == ("updates skipped", "warning")
    assert warning.what == "8 of all 60 updates were left out."
    (ill,) = diagnose(chart(skipped=lambda x: 20 if x > 0.5 else 0))
    assert ill.severity == "ill"


def reading(loss, steps=STEPS, skipped=0):
    """Rows of a stage without rewards; `loss` is a function of the step, with noise added."""
    rng = Random(0)
    return [
        {"step": step + 1, "loss": loss(step) + rng.gauss(0, 0.15), "grad_norm": 1.0, "skipped": skipped}
        for step in range(steps)
    ]


def test_stages_that_read_or_imitate_are_examined_too():
    learns = reading(lambda step: 6.0 * 0.95**step + 0.3)
    assert [diagnose(learns[:end]) for end in range(STEPS + 1)] == [[]] * (STEPS + 1)
    names = lambda rows: [(finding.name, finding.severity) for finding in diagnose(rows)]
    assert names(reading(lambda step: 6.9 if step == 0 else 40.0, steps=20)) == [("loss rising", "ill")]
    assert names(reading(lambda step: 2.0 if step < 40 else 3.0)) == [("loss rising", "warning")]
    assert names(reading(lambda step: 0.5 if step < 40 else 7.0)) == [("loss rising", "ill")]
    assert names(reading(lambda step: 2.0, skipped=30)) == [("updates skipped", "ill")]
    assert names(reading(lambda step: float("nan"), skipped=0)) == [("updates skipped", "warning")]


def test_a_stage_that_was_stopped_is_never_healthy():
    rows = reading(lambda step: 6.0, steps=20)
    assert diagnose(rows) == []
    rows[-1]["diverged"] = "the loss is 10.2 over the last 20 updates and a blind guess costs 5.8"
    (finding,) = diagnose(rows)
    assert (finding.name, finding.severity) == ("training diverged", "ill")
    assert "a blind guess costs 5.8" in finding.what


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


def test_a_watch_names_each_illness_once_and_knows_earlier_rows(tmp_path):
    rows = chart(reward_format=0.0, undecided=lambda x: 0.02 if x < 0.5 else 0.9)
    config = ladder(2)
    watch = Watch(config, tmp_path)
    said = [(row["step"], sentence) for row in rows for sentence in watch(row)]
    found = {f.what.split()[0] for f in diagnose(rows, watch.context)}
    assert len({sentence for _, sentence in said}) == len(said)
    assert found <= {sentence.split()[0] for _, sentence in said}
    checker = [step for step, sentence in said if sentence.startswith("The checker")]
    assert checker
    assert min(checker) > STEPS // 2
    assert watch.context.worst_violation == config.n_routed_experts / config.num_experts_per_tok - 1
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:-1]))
    assert Watch(config, tmp_path)(rows[-1]) == []  # all of it was said before the stop


def test_a_run_folder(tmp_path):
    for name, rows in {
        "01-pretrain": [{"step": 1, "loss": 3.0}],
        "03-rl": chart(),
        "05-rl": chart(clipped=0.4),
    }.items():
        (tmp_path / "stages" / name).mkdir(parents=True)
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "stages" / name / "metrics.jsonl").write_text(lines + '{"step": 61, "lo')
    found = diagnose_run(tmp_path)
    assert {name: [f.name for f in findings] for name, findings in found.items()} == {
        "01-pretrain": [],
        "03-rl": [],
        "05-rl": ["updates clipped"],
    }
    assert verdict(found["05-rl"]) == "ill: 1 illness, 0 warning(s)"


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="stages"):
        diagnose_run(tmp_path)


# --- real runs -------------------------------------------------------------------------------------------------------


BIAS_SPEED = 0.02  # runs of a few steps need faster biases than V3's


class Toy(Family):
    """Shows some digits and wants a letter. `rule` gives the score of an answer."""

    name = "toy"

    def __init__(self, rule):
        self.rule = rule

    def draw(self, ticket):
        return Problem(self.name, "say " + "".join(Random(ticket).choices("0123456789", k=12)), "a", {"ticket": ticket})

    def problem(self, split, index):
        return self.draw(index)

    def verify(self, problem, answer):
        return Verdict(self.rule(answer), "")


def train(model, source, loss, steps, lr, folder, bias_update_speed):
    settings = TrainSettings(
        steps=steps,
        precision="fp32",
        optimizer=OptimizerSettings(lr=lr),
        schedule=Schedule(kind="constant", warmup_steps=0),
        bias_update_speed=bias_update_speed,
        save_every=1000,
    )
    Trainer(model, source, loss, settings, folder).run()
    return read_metrics(folder)


class Clinic:
    """Makes tiny policies and gives them a few steps of reinforcement learning."""

    def __init__(self, folder):
        self.folder = folder
        self.tokenizer = train_tokenizer(["say 1 2 3 4 5 6 7 8 9 0"], 280)
        self.runs = 0

    def untrained(self):
        config = ladder(2, self.tokenizer.vocab_size, max_position_embeddings=96)
        model = Transformer(config)
        model.init_weights(torch.Generator().manual_seed(0))
        return model

    def taught(self, text, steps=50):
        """A policy that says what `text` makes of a random generator."""
        model, rng, samples = self.untrained(), Random(0), []
        for number in range(200):
            prompt = prompt_tokens(self.tokenizer, Toy(None).draw(number), True)
            answer = [*self.tokenizer.encode(text(rng)), self.tokenizer.eos_id]
            samples.append((prompt + answer, [0.0] * len(prompt) + [1.0] * len(answer)))
        source = SampleSource(samples, Place(), 64, 8, 8, self.tokenizer.pad_id, 0)
        loss = lambda model, batch, norm: next_token_loss(model, batch, LossSettings(), norm)
        train(model, source, loss, steps, 4e-3, self._folder(), BIAS_SPEED)
        return model

    def treat(
        self,
        model,
        rule,
        steps,
        lr=3e-4,
        bias_update_speed=BIAS_SPEED,
        wrap=lambda source: source,
        trained_at=1.0,
        **settings,
    ):
        """Names of the findings after `steps` updates on a copy of `model`, and the rows."""
        chosen = GRPOSettings(**{"group_size": 8, "prompts_per_step": 4, "max_new_tokens": 12} | settings)
        model = copy.deepcopy(model)
        source = GRPOSource(
            model,
            self.tokenizer,
            TaskMix([(Toy(rule), 1.0)], 0),
            chosen,
            Place(),
            seed=0,
            thinking=True,
        )
        loss = lambda model, batch, norm: policy_loss(model, batch, LossSettings(), chosen.policy, norm, trained_at)
        rows = train(model, wrap(source), loss, steps, lr, self._folder(), bias_update_speed)
        config = model.config
        findings = diagnose(rows, Context(0.1, config.n_routed_experts / config.num_experts_per_tok - 1))
        return {finding.name: finding.severity for finding in findings}, rows

    def _folder(self):
        self.runs += 1
        return self.folder / str(self.runs)


@pytest.fixture(scope="module")
def clinic(tmp_path_factory):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Clinic(tmp_path_factory.mktemp("clinic"))
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def undecided_between_a_and_b(clinic):
    return clinic.taught(lambda rng: rng.choice(["x", "xx"]) + "</think>" + rng.choice("ab"))


def says_a(answer):
    return float(answer == "a")


def test_real_a_run_that_learns(clinic, undecided_between_a_and_b):
    found, rows = clinic.treat(undecided_between_a_and_b, says_a, 32, lr=5e-4)
    accuracies = [row["reward_accuracy"] for row in rows]
    assert sum(accuracies[-8:]) > sum(accuracies[:8]) + 8 * 0.1
    assert found == {}


def test_real_untrained_policy(clinic):
    found, _ = clinic.treat(clinic.untrained(), says_a, 8)
    assert found == {"groups all wrong": "ill", "format not learned": "ill", "answers cut off": "ill"}


def test_real_problems_too_easy(clinic):
    sure = clinic.taught(lambda rng: "x</think>a", steps=100)  # of its form, whatever the rounding
    found, _ = clinic.treat(sure, lambda answer: 1.0, 8, rewards=RewardWeights(format=0))
    assert found == {"groups all right": "warning"}


def test_real_checker_that_fails(clinic, undecided_between_a_and_b):
    found, _ = clinic.treat(undecided_between_a_and_b, lambda answer: None, 8)
    assert found == {"verifier failing": "ill"}


def test_real_answers_too_long_for_the_limit(clinic, undecided_between_a_and_b):
    found, _ = clinic.treat(undecided_between_a_and_b, says_a, 8, max_new_tokens=2)
    assert found["answers cut off"] == "ill"


def test_real_learning_rate_far_too_high(clinic, undecided_between_a_and_b):
    found, rows = clinic.treat(undecided_between_a_and_b, says_a, 20, lr=0.3)
    assert rows[0]["reward_accuracy"] > 0.3
    assert found["groups all wrong"] == "ill"


def test_real_sampler_at_another_temperature(clinic, undecided_between_a_and_b):
    found, _ = clinic.treat(undecided_between_a_and_b, says_a, 8, trained_at=3.0)
    assert found == {"sampler and trainer differ": "ill"}


class Late:
    """Brings rollouts of weights that differ a little from the trained ones, as a stale copy would."""

    def __init__(self, source):
        self.source = source

    def next_step(self, step):
        head = self.source.model.lm_head.weight.data
        trained = head.clone()
        head.mul_(0.85)
        data = self.source.next_step(step)
        head.copy_(trained)
        return data

    def state_dict(self):
        return {}


def test_real_sampler_with_stale_weights(clinic, undecided_between_a_and_b):
    found, _ = clinic.treat(undecided_between_a_and_b, says_a, 8, wrap=Late)
    assert found == {"sampler and trainer differ": "warning"}


def test_real_selection_bias_moved_far_too_fast(clinic, undecided_between_a_and_b):
    found, _ = clinic.treat(undecided_between_a_and_b, says_a, 12, bias_update_speed=1.0)
    assert found["routers drifting"] == "ill"


def test_real_policy_far_from_its_reference(clinic, undecided_between_a_and_b):
    policy = PolicySettings(kl_weight=1e-6)
    settings = {"lr": 3e-3, "mini_batches": 4, "prompts_per_step": 8, "policy": policy}
    found, _ = clinic.treat(undecided_between_a_and_b, says_a, 16, **settings)
    assert "policy far from reference" in found


def test_real_too_many_updates_from_one_set_of_rollouts(clinic, undecided_between_a_and_b):
    settings = {"lr": 5e-3, "mini_batches": 8, "prompts_per_step": 8}
    found, _ = clinic.treat(undecided_between_a_and_b, says_a, 8, **settings)
    assert "updates clipped" in found


def test_real_policy_sure_of_a_wrong_answer(clinic):
    model, luck = clinic.taught(lambda rng: "x</think>a", steps=80), Random(0)
    found, _ = clinic.treat(model, lambda answer: float(luck.random() < 0.3), 8)
    assert found == {"entropy collapsed": "ill"}


def test_real_format_hacking(clinic):
    model = clinic.taught(lambda rng: rng.choice(["x</think>a<think>", "x</think>b"]))
    weights = RewardWeights(accuracy=0.2, format=1.0)
    found, _ = clinic.treat(model, lambda answer: float("<think>" in answer), 24, lr=5e-4, rewards=weights)
    assert found["format hacking"] == "ill"


def test_real_thinking_given_up(clinic):
    """Length costs and the answer cannot be known: the policy learns to guess at once."""
    model, luck = (
        clinic.taught(lambda rng: "x" * rng.randint(1, 20) + "</think>" + rng.choice("abcdefghij"), steps=70),
        Random(0),
    )
    overlong = {"max_new_tokens": 32, "overlong": "soft", "overlong_margin": 32}
    found, _ = clinic.treat(model, lambda answer: float(luck.random() < 0.05), 20, lr=5e-4, **overlong)
    assert found["length collapsing"] == "ill"
