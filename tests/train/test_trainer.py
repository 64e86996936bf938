import json
import math
import os
import re
import signal

import pytest
import torch

from ziphius.cost.flops import train_flops_per_token
from ziphius.text.packing import pad_samples
from ziphius.train.balance import load_violation
from ziphius.train.batch import Batch, stack_rows
from ziphius.train.guard import SPIKE_HISTORY, Diverged, Guard
from ziphius.train.losses import LossParts, next_token_loss
from ziphius.train.metrics import read_metrics
from ziphius.train.place import Place
from ziphius.train.resume import network_of
from ziphius.train.settings import LossSettings, TrainSettings
from ziphius.train.sources import share_rows
from ziphius.train.state import find_state, save_state
from ziphius.train.trainer import Interrupted, Trainer

from .stub import Fixed

FLAT = {"kind": "constant", "warmup_steps": 0}


def random_rows(count, length=12, seed=0):
    ids = torch.randint(3, 64, (count, length), generator=torch.Generator().manual_seed(seed)).tolist()
    return pad_samples([(row, [1.0] * length) for row in ids], 2)


def batch_of(count, seed=0):
    return stack_rows(random_rows(count, seed=seed), masked=False)


def loss_with(**settings):
    return lambda model, batch, norm: next_token_loss(model, batch, LossSettings(**settings), norm)


def make(model, source, folder, loss=None, probe=None, **settings):
    settings = TrainSettings(**({"steps": 4, "precision": "fp32", "schedule": FLAT} | settings))
    return Trainer(model, source, loss or loss_with(), settings, folder, probe=probe)


def test_it_learns(build, tmp_path):
    trainer = make(build(), Fixed([[batch_of(4)]]), tmp_path, steps=40, optimizer={"lr": 1e-2})
    result = trainer.run()
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows] == list(range(1, 41))
    assert rows[0]["loss"] == pytest.approx(math.log(64), abs=0.5)
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    assert (result.steps, result.tokens, result.skipped, result.gate) == (40, 40 * 48, 0, None)
    assert result.model_flops == pytest.approx(40 * 48 * train_flops_per_token(trainer.model.config, 12, mtp=True))
    assert result.seconds == rows[-1]["seconds"] > 0
    assert list((tmp_path / "tensorboard").iterdir())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_micro_batches_add_up(build, tmp_path, precision):
    """One of eight rows, four of two, and uneven ones move the weights alike."""
    rows = random_rows(8)
    masters, losses = [], []
    for sizes in ((8,), (2, 2, 2, 2), (5, 3)):
        parts, start = [], 0
        for size in sizes:
            parts.append(stack_rows(rows[start : start + size], masked=False))
            start += size
        trainer = make(build(), Fixed([parts]), tmp_path, loss_with(balance_weight=0.01), precision=precision)
        losses.append([trainer.step()["loss"] for _ in range(3)])
        masters.append(trainer.weights.master.clone())
    close = {"rtol": 1e-3, "atol": 2e-4} if precision == "fp32" else {"rtol": 0.1, "atol": 6e-3}
    for master, loss in zip(masters[1:], losses[1:], strict=True):
        assert loss == pytest.approx(losses[0], rel=1e-4 if precision == "fp32" else 1e-2)
        assert torch.allclose(master, masters[0], **close)


def test_gradients_are_clipped_to_their_norm(build, tmp_path):
    seen = []
    trainer = make(build(), Fixed([[batch_of(2)]]), tmp_path, optimizer={"clip": 0.01}, bias_update_speed=0.0)
    trainer.optimizer.step = lambda grad, lr: seen.append((float(grad.norm()), lr))
    row = trainer.step()
    assert row["grad_norm"] > 0.1
    assert seen == [(pytest.approx(0.01, rel=1e-3), trainer.settings.optimizer.lr)]
    trainer.settings.optimizer.clip = 1e9
    assert trainer.step()["grad_norm"] == pytest.approx(row["grad_norm"])
    assert seen[1][0] == pytest.approx(row["grad_norm"], rel=1e-4)


def test_losses_that_are_not_finite_are_skipped_and_counted(build, tmp_path):
    def loss(model, batch, norm):
        parts = next_token_loss(model, batch, LossSettings(), norm)
        bad = batch.tokens[0, 0] == 0
        return LossParts(parts.total * math.inf if bad else parts.total, parts.loads, parts.sums)

    poison = batch_of(2)
    poison.tokens[0, 0] = 0
    trainer = make(build(), Fixed([[batch_of(2)], [poison]]), tmp_path, loss)
    trainer.step()
    before, bias = trainer.weights.master.clone(), trainer.gates[0].e_score_correction_bias.clone()
    assert trainer.step()["skipped"] == 1
    assert torch.equal(trainer.weights.master, before)
    assert torch.equal(trainer.gates[0].e_score_correction_bias, bias)
    assert trainer.optimizer.updates == 1
    assert trainer.step()["skipped"] == 1
    assert not torch.equal(trainer.weights.master, before)
    assert trainer.weights.master.isfinite().all()


def test_spikes_are_skipped(build, tmp_path):
    factor = [1.0] * 20 + [30.0, 1.0]

    def loss(model, batch, norm):
        parts = next_token_loss(model, batch, LossSettings(), norm)
        return LossParts(parts.total * factor[trainer.progress.step], parts.loads, parts.sums)

    trainer = make(build(), Fixed([[batch_of(2)]]), tmp_path, loss, steps=30, optimizer={"lr": 1e-5})
    skipped = [trainer.step()["skipped"] for _ in range(22)]
    assert skipped == [0] * 20 + [1, 1]
    assert trainer.optimizer.updates == 21


def test_steps_without_anything_to_learn_change_nothing_and_do_not_spoil_the_spike_gauge(build, tmp_path):
    """RL where all answers of a group earn the same: long stretches must not make real steps look like spikes."""
    idle = batch_of(2)
    idle.weights = torch.zeros_like(idle.weights)
    idle.normaliser = 10.0
    source = Fixed([[idle]])
    trainer = make(build(), source, tmp_path, loss_with(balance_weight=0.1), steps=99)
    before = trainer.weights.master.clone()
    for _ in range(40):
        row = trainer.step()
    assert row["skipped"] == 0
    assert torch.equal(trainer.weights.master, before)
    assert trainer.optimizer.updates == 0
    source.steps = [[batch_of(2)]]
    assert [trainer.step()["skipped"] for _ in range(5)] == [0] * 5
    assert trainer.optimizer.updates == 5


def test_metrics_of_the_loads_and_the_bias_that_answers_them(build, tmp_path):
    model = build()
    trainer = make(model, Fixed([[batch_of(3), batch_of(2, seed=1)]]), tmp_path, bias_update_speed=0.01)
    parts = [next_token_loss(model, batch, LossSettings(), 1.0) for batch in trainer.source.steps[0]]
    loads = [sum(loads) for loads in zip(*(part.loads for part in parts), strict=True)]
    row = trainer.step()
    assert row["load_violation"] == pytest.approx(max(load_violation(load) for load in loads))
    for gate, load in zip(trainer.gates, loads, strict=True):
        signs = torch.sign(load.float().mean() - load.float())
        assert torch.allclose(gate.e_score_correction_bias, 0.01 * signs)
    still = make(build(), trainer.source, tmp_path, bias_update_speed=0.0)
    still.step()
    assert still.gates[0].e_score_correction_bias.abs().max() == 0


def test_dense_models_and_v2_gates_train(build, tmp_path):
    dense = make(build(n_routed_experts=None), Fixed([[batch_of(2)]]), tmp_path)
    assert dense.step()["load_violation"] == 0.0
    v2 = {
        "model_type": "deepseek_v2",
        "topk_method": "greedy",
        "scoring_func": "softmax",
        "num_nextn_predict_layers": 0,
    }
    greedy = make(build(**v2), Fixed([[batch_of(2)]]), tmp_path)
    assert greedy.step()["load_violation"] > 0


def test_the_rate_follows_the_schedule(build, tmp_path):
    schedule = {"kind": "cosine", "warmup_steps": 2, "floor": 0.1}
    make(build(), Fixed([[batch_of(2)]]), tmp_path, steps=6, schedule=schedule, optimizer={"lr": 0.01}).run()
    rates = [row["lr"] for row in read_metrics(tmp_path)]
    assert rates[:2] == pytest.approx([0.005, 0.01])
    assert rates[-1] == pytest.approx(0.001)


# --- divergence ------------------------------------------------------------------------------------------------------


def factors_on_the_loss(trainer, factors):
    """Make the loss of step n `factors[n]` times what it is."""
    loss = trainer.loss

    def wrong(model, batch, norm):
        parts = loss(model, batch, norm)
        return LossParts(parts.total * factors[trainer.progress.step], parts.loads, parts.sums)

    trainer.loss = wrong
    return trainer


def diverged(trainer):
    with pytest.raises(Diverged) as error:
        trainer.run()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_rate_far_too_high_stops_the_stage_with_the_reason_and_the_mend(build, tmp_path):
    steps = [[batch_of(2, seed=n)] for n in range(7)]
    text = diverged(make(build(), Fixed(steps), tmp_path, steps=60, save_every=8, optimizer={"lr": 1.0}))
    assert re.search(r"^train diverged by step 20 of 60 at lr 1: the loss is [\d.]+ over the last 20 updates", text)
    assert text.endswith("a blind guess costs 4.2; lower this stage's train.optimizer.lr from 1; "
                         "the state of step 16 is kept")  # fmt: skip
    assert find_state(tmp_path / "state").state["progress"]["step"] == 16
    again = make(build(5), Fixed(steps), tmp_path, steps=60, save_every=8, optimizer={"lr": 1.0})
    assert diverged(again) == text
    assert len(read_metrics(tmp_path)) == 20


def test_ten_updates_in_a_row_that_are_not_finite_are_enough(build, tmp_path):
    trainer = make(build(), Fixed([[batch_of(2)]]), tmp_path, steps=60, precision="bf16")
    text = diverged(factors_on_the_loss(trainer, [1.0] * 5 + [math.inf] * 55))
    assert "diverged by step 15 of 60" in text
    assert "10 of the last 15 updates had to be left out (10 not finite); lower" in text
    assert text.endswith("from 0.002 or set train.precision to 'fp32'")


def test_a_storm_of_spikes_stops_the_stage_and_a_few_are_shown(build, tmp_path, capfd):
    make_spiky = lambda folder, factors, **settings: factors_on_the_loss(
        make(build(), Fixed([[batch_of(2)]]), folder, steps=60, optimizer={"lr": 1e-5}, **settings), factors
    )
    few = [1.0] * 20 + [30.0] * 3 + [1.0] * 37
    assert make_spiky(tmp_path / "few", few).run().skipped == 3
    assert re.search(r"60/60 loss [\d.]+  3 skipped  [\d,]+ tok/s", capfd.readouterr().err)
    many = [1.0] * 20 + [30.0, 1.0] * 20
    text = diverged(make_spiky(tmp_path / "many", many, max_skipped=0.1))
    assert "6 of the last 31 updates had to be left out (6 a spike of the gradient)" in text


def test_a_lasting_rise_of_the_gradient_is_accepted_in_the_end(build, tmp_path):
    factors = [1.0] * 30 + [40.0] * 60
    trainer = make(build(), Fixed([[batch_of(2)]]), tmp_path, steps=90, optimizer={"lr": 1e-5})
    result = factors_on_the_loss(trainer, factors).run()
    assert result.skipped == SPIKE_HISTORY // 2
    assert trainer.optimizer.updates == 90 - SPIKE_HISTORY // 2


def test_a_short_stage_that_learned_nothing_does_not_end_well(build, tmp_path):
    trainer = make(build(), Fixed([[batch_of(2)]]), tmp_path, steps=3, save_every=1)
    text = diverged(factors_on_the_loss(trainer, [1.0, math.nan, math.nan]))
    assert "2 of the last 3 updates" in text
    assert text.endswith("the state of step 2 is kept")
    assert find_state(tmp_path / "state").state["progress"]["step"] == 2  # else a second start finds it finished


def test_weights_that_are_not_finite_do_not_end_well(build, tmp_path):
    trainer = make(build(), Fixed([[batch_of(2)]]), tmp_path, steps=3)
    step = trainer.optimizer.step
    trainer.optimizer.step = lambda grad, lr: (step(grad, lr), trainer.weights.master[:2].fill_(math.inf))
    count = trainer.weights.master.numel()
    assert f"at lr 0.002: 2 of its {count:,} weights are not finite; lower this stage's" in diverged(trainer)


def test_a_loss_without_a_size_of_its_own_is_not_judged_by_it():
    policy, reading = Guard(10.0, 0.4, None), Guard(10.0, 0.4, 4.0)
    for guard in (policy, reading):
        assert all(guard.admits(1.0, loss) for loss in [5.0] + [9.0] * 20)
    assert policy.complaint(finished=True) is None
    assert reading.complaint(finished=False) == "the loss is 9.0 over the last 20 updates and a blind guess costs 4.0"
    calm = Guard(10.0, 0.4, 4.0)
    for loss in [7.0] + [9.0] * 20:  # begun by a network that guesses worse than blindly
        calm.admits(1.0, loss)
    assert calm.complaint(finished=True) is None


# --- gates -----------------------------------------------------------------------------------------------------------


def gated(build, folder, readings, **settings):
    readings = iter(readings)
    settings = {"steps": 20, "gate_every": 2, "gate_target": 0.5} | settings
    trainer = make(build(), Fixed([[batch_of(1)]]), folder, probe=lambda: next(readings), **settings)
    result, rows = trainer.run(), read_metrics(folder)
    return result, [row["lr"] / trainer.settings.optimizer.lr for row in rows], rows


def test_a_gate_begins_the_decay_of_wsd(build, tmp_path):
    schedule = {"kind": "wsd", "warmup_steps": 0, "decay": 0.2, "floor": 0.0}
    result, rates, rows = gated(build, tmp_path, [0.1, 0.2, 0.6, 0.7, 0.8], schedule=schedule)
    assert result.steps == 10
    assert rates == pytest.approx([1.0] * 6 + [0.75, 0.5, 0.25, 0.0])
    assert [(row["step"], row["probe"]) for row in rows if "probe" in row] == [
        (2, 0.1), (4, 0.2), (6, 0.6), (8, 0.7), (10, 0.8),
    ]  # fmt: skip
    assert result.gate == 0.8


def test_a_gate_that_opens_within_the_decay_does_not_raise_the_rate_again(build, tmp_path):
    schedule = {"kind": "wsd", "warmup_steps": 0, "decay": 0.5, "floor": 0.0}
    result, rates, _ = gated(build, tmp_path, [0.1] * 7 + [0.9] * 9, schedule=schedule)
    assert result.steps == 20
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == 0.0


def test_a_gate_ends_other_schedules_at_once(build, tmp_path):
    result, _, _ = gated(build, tmp_path, [0.1, 0.9])
    assert result.steps == 4


def test_without_a_target_the_probe_only_reports(build, tmp_path):
    result, _, rows = gated(build, tmp_path, [0.9] * 99, gate_target=None)
    assert result.steps == 20
    assert sum("probe" in row for row in rows) == 9


# --- stopping --------------------------------------------------------------------------------------------------------

TIMES = ("seconds", "tokens_per_second", "mfu", "rollout_seconds")


def without_times(rows):
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_stopped_run_goes_on_to_the_same_bits(build, tmp_path, precision, name):
    steps = [[batch_of(2, seed=n)] for n in range(9)]
    settings = {"steps": 9, "save_every": 4, "precision": precision}
    whole = make(build(), Fixed(steps), tmp_path / "whole", **settings)
    expected = whole.run()
    number = getattr(signal, name)
    handler = signal.getsignal(number)
    for stop in (2, 3, 7):  # told so while the step of that number is made
        ask = lambda step, stop=stop: step == stop and os.kill(os.getpid(), number)
        trainer = make(build(), Fixed(steps, ask), tmp_path / "stopped", **settings)
        with pytest.raises(Interrupted, match=f"stopped at step {stop + 1}; its state is saved"):
            trainer.run()
        assert find_state(tmp_path / "stopped" / "state").state["progress"]["step"] == stop + 1
        assert signal.getsignal(number) is handler
    resumed = make(build(9), Fixed(steps), tmp_path / "stopped", **settings)
    result = resumed.run()
    assert torch.equal(resumed.weights.master, whole.weights.master)
    assert torch.equal(resumed.optimizer.second, whole.optimizer.second)
    for ours, theirs in zip(resumed.model.buffers(), whole.model.buffers(), strict=True):
        assert torch.equal(ours, theirs)
    assert without_times(read_metrics(tmp_path / "stopped")) == without_times(read_metrics(tmp_path / "whole"))
    assert (result.steps, result.tokens, result.model_flops) == (9, expected.tokens, expected.model_flops)
    assert 0 < result.earlier_seconds < result.seconds


def test_a_finished_run_started_again_only_says_so(build, tmp_path):
    first = make(build(), Fixed([[batch_of(2)]]), tmp_path).run()
    source = Fixed([], before=lambda step: pytest.fail("nothing is left to do"))
    trainer = make(build(3), source, tmp_path)
    again = trainer.run()
    assert (again.steps, again.tokens, again.seconds) == (first.steps, first.tokens, first.seconds)
    assert again.earlier_seconds == again.seconds
    assert len(read_metrics(tmp_path)) == 4


def test_metrics_after_the_saved_step_are_dropped_and_a_torn_line_is_forgiven(build, tmp_path):
    ask = lambda step: step == 1 and os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Interrupted):
        make(build(), Fixed([[batch_of(2)]], ask), tmp_path).run()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 3, "seconds": 1.0, "lost": True}) + '\n{"step": 4, "sec')
    make(build(), Fixed([[batch_of(2)]]), tmp_path).run()
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert not any("lost" in row for row in rows)


def test_another_number_of_processes_is_refused(build, tmp_path):
    trainer = make(build(), Fixed([[batch_of(2)]]), tmp_path)
    save_state(tmp_path / "state", trainer.state_dict() | {"world_size": 2}, network_of(trainer.weights))
    with pytest.raises(ValueError, match=r"begun with 2 processes .* with 1; start it with 2, or remove its folder"):
        trainer._resume()


# --- shares ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_ranks_share_every_row_once(size):
    rows = random_rows(4)
    batches = [share_rows(rows, Place(rank, size), 2, masked=False) for rank in range(size)]
    assert sum(batch.token_count for part in batches for batch in part) == 48
    assert sum(batch.norm for part in batches for batch in part) == 44
    assert all(part for part in batches)
    assert all(len(batch.tokens) <= 2 for part in batches for batch in part)


def test_norm_is_the_weight_or_what_was_given():
    batch = batch_of(2)
    assert batch.norm == 22
    batch.normaliser = 7.5
    assert batch.norm == 7.5
    assert Batch(batch.tokens, batch.weights).token_count == 24
