import pytest
import torch

from ziphius.train.balance import gates, load_violation, update_bias


def test_busy_experts_lose_and_idle_ones_gain(build):
    gate = gates(build())[0]
    load = torch.tensor([9, 1, 4, 2])
    update_bias(gate, load, 0.01, mean_centred=False)
    assert gate.e_score_correction_bias.tolist() == pytest.approx([-0.01, 0.01, 0.0, 0.01])
    update_bias(gate, load, 0.01, mean_centred=False)
    assert gate.e_score_correction_bias.tolist() == pytest.approx([-0.02, 0.02, 0.0, 0.02])


def test_mean_centred_biases_keep_their_sum(build):
    gate = gates(build())[0]
    update_bias(gate, torch.tensor([9, 1, 4, 2]), 0.01, mean_centred=True)
    assert gate.e_score_correction_bias.tolist() == pytest.approx([-0.0125, 0.0075, -0.0025, 0.0075])


def test_bias_evens_the_load_out(build):
    """A gate that would send nearly everything to one expert stops doing so, weights untouched."""
    model = build(n_routed_experts=8)
    gate = gates(model)[0]
    x = torch.randn(512, 32, generator=torch.Generator().manual_seed(0)) + 1.0
    with torch.no_grad():
        gate.weight[0] = 0.2
    violations = []
    for _ in range(300):
        load = torch.bincount(gate(x)[1].flatten(), minlength=8)
        violations.append(load_violation(load))
        update_bias(gate, load, 0.005, mean_centred=False)
    assert violations[0] > 1.5
    assert max(violations[-20:]) < 0.35


def test_violation():
    assert load_violation(torch.tensor([4, 4, 4, 4])) == 0.0
    assert load_violation(torch.tensor([8, 0, 0, 0])) == 3.0
    assert load_violation(torch.tensor([6, 2])) == pytest.approx(0.5)


def test_gates_stand_in_the_order_of_the_loads(build):
    from ziphius.model.experts import RouterStats

    model = build(num_hidden_layers=3)
    found = gates(model)
    assert len(found) == 3  # two layers of experts and the prediction module's
    for number, gate in enumerate(found):
        gate.e_score_correction_bias[number] = 100.0  # so that this expert is always chosen
    stats = RouterStats()
    tokens = torch.randint(0, 64, (2, 9))
    model.mtp_hidden(model.hidden(tokens, stats=stats), tokens, stats=stats)
    assert [int(load.argmax()) for load in stats.loads] == [0, 1, 2]
    assert [int(load.max()) for load in stats.loads] == [18, 18, 16]
