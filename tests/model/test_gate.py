"""What holds for every gate, and the balance loss."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ziphius.model.experts import Gate, MoE, RouterStats
from ziphius.ops import sequence_balance_loss

from .variants import randomise, v2, v3

METHODS = ("noaux_tc", "greedy", "group_limited_greedy")


@st.composite
def gate_configs(draw):
    method = draw(st.sampled_from(METHODS))
    n_group = draw(st.sampled_from([1, 2, 4]))
    topk_group = draw(st.integers(1, n_group))
    per_group = draw(st.integers(2, 4))
    reachable = per_group * (n_group if method == "greedy" else topk_group)
    shape = {
        "n_group": n_group, "topk_group": topk_group, "n_routed_experts": n_group * per_group,
        "num_experts_per_tok": draw(st.integers(1, min(reachable, 5))), "topk_method": method,
        "norm_topk_prob": draw(st.booleans()), "routed_scaling_factor": draw(st.sampled_from([1.0, 2.5])),
    }  # fmt: skip
    return v3(**shape) if method == "noaux_tc" else v2(**shape)


def gate_of(config, seed):
    gate = Gate(config.hidden_size, config.routing)
    randomise(gate.state_dict(), seed)
    x = torch.randn(20, config.hidden_size, generator=torch.Generator().manual_seed(seed + 1))
    return gate, x


@settings(max_examples=60, deadline=None)
@given(config=gate_configs(), seed=st.integers(0, 1000))
@torch.no_grad()
def test_properties(config, seed):
    gate, x = gate_of(config, seed)
    scores, indices, weights = gate(x)
    K = config.num_experts_per_tok
    assert indices.shape == weights.shape == (20, K)
    assert all(len(set(row.tolist())) == K for row in indices), "K distinct experts"
    if config.topk_method != "greedy":
        groups = indices // (config.n_routed_experts // config.n_group)
        assert all(len(set(row.tolist())) <= config.topk_group for row in groups), "of the best groups only"
    chosen = scores.gather(1, indices)
    if config.norm_topk_prob and K > 1:
        scale = config.routed_scaling_factor if config.model_type == "deepseek_v3" else 1.0
        torch.testing.assert_close(weights.sum(-1), torch.full((20,), scale))
        torch.testing.assert_close(weights, scale * chosen / chosen.sum(-1, keepdim=True))
    else:
        torch.testing.assert_close(weights, chosen * config.routed_scaling_factor)


@settings(max_examples=20, deadline=None)
@given(expert=st.integers(0, 7), seed=st.integers(0, 1000))
@torch.no_grad()
def test_the_bias_moves_the_choice_and_not_the_weights(expert, seed):
    config = v3(n_group=1, topk_group=1, norm_topk_prob=False)
    gate, x = gate_of(config, seed)
    gate.e_score_correction_bias.zero_()
    scores, _, _ = gate(x)
    gate.e_score_correction_bias[expert] = 10.0
    again, indices, weights = gate(x)
    assert torch.equal(scores, again)
    assert torch.all((indices == expert).any(-1))
    torch.testing.assert_close(weights, scores.gather(1, indices) * 2.5)
    gate.e_score_correction_bias[expert] = -10.0
    assert not torch.any(gate(x)[1] == expert)


def test_no_gradient_reaches_the_bias_and_scores_stay_fp32():
    gate, x = gate_of(v3(), 0)
    assert "e_score_correction_bias" not in dict(gate.named_parameters())
    with torch.autocast("cpu", torch.bfloat16):
        scores, _, weights = gate(x.bfloat16())
    assert scores.dtype == weights.dtype == torch.float32
    weights.square().sum().backward()
    assert gate.weight.grad.abs().sum() > 0


def balance_of(indices_NK, E, shape=None, valid=None, scores=None):
    N = indices_NK.shape[0]
    if scores is None:
        scores = torch.zeros(N, E).scatter_(1, indices_NK, 1.0)
    return float(sequence_balance_loss(scores, indices_NK, shape or (1, N), valid))


@pytest.mark.parametrize(("E", "K"), [(8, 2), (16, 4), (4, 1)])
def test_balance_loss_of_the_extremes(E, K):
    even = torch.arange(4 * E).view(-1, K) % E
    assert balance_of(even, E) == pytest.approx(1.0)
    assert balance_of(even, E, scores=torch.ones(len(even), E)) == pytest.approx(1.0)
    same = torch.arange(K).repeat(16, 1)
    assert balance_of(same, E) == pytest.approx(E / K)


def test_balance_loss_is_per_sequence():
    """Two sequences, each uneven, even together: the loss sees each by itself."""
    indices = torch.tensor([[0], [0], [1], [1]])
    assert balance_of(indices, 2, shape=(1, 4)) == pytest.approx(1.0)
    assert balance_of(indices, 2, shape=(2, 2)) == pytest.approx(2.0)


def test_balance_loss_pushes_towards_the_idle_experts():
    scores = torch.full((10, 4), 0.5, requires_grad=True)
    sequence_balance_loss(scores, torch.zeros(10, 1, dtype=torch.int64), (1, 10)).backward()
    assert torch.all(scores.grad[:, 0] > 0)
    assert torch.all(scores.grad[:, 1:] < 0)


def test_stats_ignore_padding():
    config = v3()
    moe = MoE(config.hidden_size, config.routing)
    randomise(moe.state_dict(), 0)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 10, config.hidden_size, generator=generator)
    valid = torch.ones(2, 10, dtype=torch.bool)
    valid[0, 6:] = False
    padded, changed = RouterStats(valid), RouterStats(valid)
    moe(x, padded)
    noise = torch.where(valid.unsqueeze(-1), x, torch.randn(x.shape, generator=generator))
    moe(noise, changed)
    assert int(padded.loads[0].sum()) == 16 * config.num_experts_per_tok
    assert torch.equal(padded.loads[0], changed.loads[0])
    assert torch.equal(padded.balance_losses[0], changed.balance_losses[0])
    alone = [RouterStats(), RouterStats()]
    moe(x[:1, :6], alone[0])
    moe(x[1:], alone[1])
    torch.testing.assert_close(padded.loads[0], alone[0].loads[0] + alone[1].loads[0])
    torch.testing.assert_close(padded.balance_losses[0], (alone[0].balance_losses[0] + alone[1].balance_losses[0]) / 2)


@torch.no_grad()
def test_experts_are_a_weighted_sum_of_mlps():
    config = v3()
    moe = MoE(config.hidden_size, config.routing)
    randomise(moe.state_dict(), 0)
    x = torch.randn(1, 3, config.hidden_size, generator=torch.Generator().manual_seed(1))
    _, indices, weights = moe.gate(x[0])
    F = config.moe_intermediate_size
    expected = moe.shared_experts(x)[0]
    for token in range(3):
        for expert, weight in zip(indices[token], weights[token], strict=True):
            gate_up = moe.experts.gate_up_proj[expert] @ x[0, token]
            hidden = torch.nn.functional.silu(gate_up[:F]) * gate_up[F:]
            expected[token] += weight * (moe.experts.down_proj[expert] @ hidden)
    torch.testing.assert_close(moe(x)[0], expected, rtol=1e-4, atol=1e-5)
