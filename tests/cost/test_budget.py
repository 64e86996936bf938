import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ziphius.cost.budget import Money, choose, measured_speed, network, planned_speed, power_of_two, split_money
from ziphius.cost.budget_screen import budget_json, show_budget
from ziphius.cost.data import Data
from ziphius.cost.flops import count_parameters
from ziphius.cost.interval import Interval
from ziphius.cost.money import Rate, rental_rate
from ziphius.cost.scaling import (
    CHINCHILLA,
    REFIT,
    best_batch,
    best_learning_rate,
    best_scale,
    expected_loss,
    model_scale,
    stretched,
    vocabulary_for,
)
from ziphius.model.presets import ladder


def rate(dollars):
    return Rate(Interval.exactly(dollars), "a test")


def hours(dollars, per_hour=1.0, clock=None):
    return split_money(dollars, rate(per_hour), clock)


SLOW = measured_speed({1e6: 1e12})


# --- the rule --------------------------------------------------------------------------------------------------------


@given(power=st.floats(14, 25))
def test_size_times_tokens_is_the_arithmetic(power):
    """The paper's two laws are one: M = 0.1715·C^0.5243 and D = 5.8316·C^0.4757 multiply to C."""
    compute = 10**power
    assert compute / best_scale(compute) == pytest.approx(5.8316 * compute**0.4757, rel=1e-3)


def test_the_papers_own_models():
    """DeepSeek LLM 67B: 2T tokens of M = 6·67e9 and attention; its batch of 4,608 × 4,096 and lr 3.2e-4."""
    compute = 2e12 * 4.4e11
    assert best_batch(compute) == pytest.approx(4608 * 4096, rel=0.4)
    assert best_learning_rate(compute) == pytest.approx(3.2e-4, rel=0.15)


def test_loss_laws_agree_where_they_were_fitted():
    """Chinchilla: 70B parameters on 1.4T tokens."""
    for law in (REFIT, CHINCHILLA):
        assert law.loss(70e9, 1.4e12) == pytest.approx(1.95, abs=0.05)


def test_loss_falls_with_tokens_and_never_passes_a_guess():
    config = network(12, 1024)
    losses = [expected_loss(config, Interval.exactly(10.0**power)).point for power in range(6, 14)]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] <= math.log(config.vocab_size)
    wide = expected_loss(config, Interval(1e9, 5e8, 2e9))
    assert wide.low < wide.point < wide.high


def test_scale_leaves_the_vocabulary_out():
    small, large = ladder(8, 1024), ladder(8, 65536)
    assert model_scale(small, 256) == model_scale(large, 256)
    assert model_scale(small, 512) > model_scale(small, 256)


@pytest.mark.parametrize(("compute", "times"), [(1e17, 1), (1e19, 1), (1e16, 10), (3e21, 10)])
def test_outside_the_fit(compute, times):
    assert stretched(compute) == pytest.approx(times)


def test_vocabularies_are_powers_of_two_that_leave_room_for_the_body():
    for depth in (2, 6, 12, 24, 64):
        config = network(depth, 1024)
        counts = count_parameters(config)
        assert config.vocab_size & (config.vocab_size - 1) == 0
        if config.vocab_size > 1024:
            assert counts.embedding + counts.head < 0.3 * counts.total
    assert vocabulary_for(1, 1e12) == 2**17


@pytest.mark.parametrize(("value", "power"), [(0.1, 1), (1, 1), (2.9, 4), (2.8, 2), (100, 128)])
def test_powers_of_two(value, power):
    assert power_of_two(value) == power


# --- money -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dollars", "per_hour", "clock", "devices", "on_the_clock"), [
    (100, 2.0, 8, 6, 8.0), (10, 2.0, 8, 1, 5.0), (1000, 2.0, 8, 56, 8.0), (100, 2.0, None, 1, 50.0),
    (2880, 2.0, None, 2, 720.0), (14400, 2.0, None, 16, 450.0),
])  # fmt: skip
def test_money_as_devices_and_hours(dollars, per_hour, clock, devices, on_the_clock):
    money = hours(dollars, per_hour, clock)
    assert (money.devices, money.hours) == (devices, pytest.approx(on_the_clock))
    assert money.spent <= dollars * (1 + 1e-9)


def test_one_machine_is_one_machine():
    assert split_money(1e4, rate(0.09), None, most=1).devices == 1
    assert split_money(1e4, rate(0.09), 10, most=1).spent == pytest.approx(0.9)


def test_free_hours_are_refused():
    with pytest.raises(ValueError, match=r"the rate is 0: .* give --rate above 0"):
        hours(1, 0.0)


# --- the choice ------------------------------------------------------------------------------------------------------


def test_the_choice_stands_on_the_rule_between_its_neighbours():
    money = hours(1000)
    smaller, best, larger = choose(money, SLOW, 512)
    assert smaller.depth < best.depth < larger.depth
    assert 0.75 < best.off_rule < 1.33
    assert smaller.scale / best.scale == pytest.approx(0.5, rel=0.3)
    assert larger.scale / best.scale == pytest.approx(2.0, rel=0.3)
    for choice in (smaller, best, larger):
        assert choice.compute == pytest.approx(choice.scale * choice.tokens.point)
        assert choice.steps * choice.rows * 512 == pytest.approx(choice.tokens.point, rel=0.01)
        assert choice.tokens.point == pytest.approx(choice.tokens_per_second.point * 3600 * money.hours)
        assert choice.tokens.low < choice.tokens.point < choice.tokens.high
        assert choice.rows * 512 == pytest.approx(best_batch(choice.compute), rel=0.5)


@settings(max_examples=15, deadline=None)
@given(dollars=st.floats(1.0, 1e5), factor=st.floats(1.0, 50.0))
def test_more_money_never_buys_less(dollars, factor):
    def best(amount):
        return min(choose(Money(amount, rate(1.0), 1, amount), SLOW, 512), key=lambda c: abs(math.log(c.off_rule)))

    poor, rich = best(dollars), best(dollars * factor)
    assert rich.depth >= poor.depth
    assert rich.compute >= 0.99 * poor.compute


def test_too_little_and_too_much_money():
    with pytest.raises(ValueError, match=r"\$1e-06 buys .* tokens for the smallest network, too few to learn"):
        choose(hours(1e-6), SLOW, 512)
    with pytest.raises(ValueError, match="more than the ladder's deepest network"):
        choose(hours(1000), measured_speed({1e6: 1e30}), 512)


def test_the_largest_that_fits_where_memory_is_the_limit():
    def cramped(config, seq_len, rows):
        if config.num_hidden_layers > 9:
            raise ValueError("does not fit")
        return SLOW(config, seq_len, rows)

    choices = choose(hours(1e6), cramped, 512)
    assert choices[-1].depth == 9
    assert choices[-1].off_rule < 0.8


def test_measured_speed_reads_between_the_sizes_that_were_measured():
    small, large = network(4, 256), network(8, 256)
    speed = measured_speed({model_scale(small, 256): 1e10, model_scale(large, 256): 3e10})
    flops = [speed(network(d, 256), 256, 8).point * _flops(network(d, 256)) for d in (2, 4, 6, 8, 12)]
    assert flops == pytest.approx([1e10, 1e10, flops[2], 3e10, 3e10])
    assert 1e10 < flops[2] < 3e10


def _flops(config):
    from ziphius.cost.flops import train_flops_per_token

    return train_flops_per_token(config, 256, mtp=True)


def test_a_hundred_dollars_of_h100():
    """The order of the answer: hundreds of millions of parameters, billions of tokens, a tenth of the peak."""
    data = Data()
    h100 = data.accelerator("h100")
    price = rental_rate(h100, data)
    money = split_money(100, price, 8)
    smaller, best, larger = choose(money, planned_speed(h100, money.devices, data, price), 1024)
    assert 1e8 < best.counts.total < 3e9
    assert 1e9 < best.tokens.point < 5e10
    assert 0.03 < best.model_flops / (money.devices * money.hours * 3600 * 989e12) < 0.5
    assert smaller.loss.point != larger.loss.point
    assert best.rows % money.devices == 0


def test_json_and_screen(tmp_path, capsys):
    money = hours(5)
    choices = choose(money, SLOW, 512)
    found = json.loads(json.dumps(budget_json(money, choices, choices[1], "measured", tmp_path / "r.toml")))
    assert [choice["choice"] for choice in found["choices"]] == ["smaller", "chosen", "larger"]
    assert set(found["choices"][1]["tokens"]) == {"point", "low", "high"}
    assert found["choices"][1]["config"]["model_type"] == "deepseek_v3"
    show_budget(money, choices, choices[1], "measured", tmp_path / "r.toml")
    out = " ".join(capsys.readouterr().out.split())
    assert "DeepSeek LLM (arXiv 2401.02954" in out
    assert "expected loss" in out
    assert "times outside" in out
