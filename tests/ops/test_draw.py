import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ziphius import ops
from ziphius.ops.cut import Cuts, cut

from .compare import few, normal, seeds

BACKENDS = ["auto", "torch"]


@few
@given(seed=seeds, N=st.integers(1, 9), W=st.integers(1, 300), data=st.data())
def test_backends_agree(seed, N, W, data):
    temperature = torch.tensor(data.draw(st.lists(st.sampled_from([0.0, 0.3, 1.0, 2.0]), min_size=N, max_size=N)))
    logits, place = normal(seed, N, W) * 3, torch.rand(N, generator=torch.Generator().manual_seed(seed))
    with ops.backend("torch"):
        expected = ops.draw_tokens(logits, temperature, place)
    chosen, logprobs = ops.draw_tokens(logits, temperature, place)
    same = chosen == expected[0]  # a place between two tokens may fall to either
    torch.testing.assert_close(logprobs[same], expected[1][same], rtol=1e-4, atol=1e-5)
    for row in range(N):
        p = torch.softmax(logits[row].double() / (temperature[row] or 1), -1)
        best = int(p.argmax())
        line = torch.cat([p[best : best + 1], p[:best], p[best + 1 :]]).cumsum(-1)
        assert same[row] or (line - place[row]).abs().min() < 1e-5
        alone = ops.draw_tokens(logits[row : row + 1], temperature[row : row + 1], place[row : row + 1])
        assert (alone[0], alone[1]) == (chosen[row], logprobs[row])


@few
@given(
    seed=seeds,
    W=st.integers(1, 300),
    top_k=st.sampled_from([0, 1, 3, 40, 299, 500]),
    top_p=st.sampled_from([0.1, 0.7, 0.95, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.5]),
    tied=st.booleans(),
)
def test_what_is_cut_is_not_drawn_and_all_else_is(seed, W, top_k, top_p, min_p, tied):
    """Places all along the line find the tokens that `cut` leaves, in order, with their shares before the cuts."""
    logits = normal(seed, 1, W) * 3
    logits = logits.round() if tied else logits
    temperature = torch.tensor([0.6])
    cuts = Cuts(torch.tensor([top_k]), torch.tensor([top_p]), torch.tensor([min_p]))
    mass = torch.softmax(cut(logits, temperature, cuts).double() / 0.6, -1)[0]
    best = int(logits.argmax())
    order = [best, *(token for token in mass.nonzero().flatten().tolist() if token != best)]
    ends = mass[order].cumsum(-1)
    places = (ends - mass[order] / 2).float()
    for name in BACKENDS:
        with ops.backend(name):
            same = Cuts(*(x.expand(len(order)) for x in cuts))
            chosen, logprobs = ops.draw_tokens(
                logits.expand(len(order), W), temperature.expand(len(order)), places, same
            )
        solid = mass[order] > 1e-5  # a place in the middle of less is a matter of rounding
        assert chosen[solid].tolist() == torch.tensor(order)[solid].tolist()
        expected = torch.log_softmax(logits[0] / 0.6, -1)[chosen]
        torch.testing.assert_close(logprobs, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_distribution_is_met(backend):
    logits = torch.tensor([[1.0, -float("inf"), 0.0, 2.0]]).expand(20000, 4)
    place = (torch.arange(20000) + 0.5) / 20000
    with ops.backend(backend):
        chosen, logprobs = ops.draw_tokens(logits, torch.full((20000,), 0.5), place)
    expected = torch.softmax(logits[0] / 0.5, -1)
    torch.testing.assert_close(chosen.bincount(minlength=4) / 20000, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(logprobs, expected.log()[chosen], rtol=1e-4, atol=1e-5)
    assert chosen.tolist() == sorted(chosen.tolist(), key=[3, 0, 2].index)  # the likeliest first, then in order


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("W", [5, 64, 70, 200])
def test_a_place_next_to_one_still_finds_a_token_with_mass(backend, W):
    logits = torch.zeros(1, W)
    logits[0, W // 2 :] = -float("inf")
    place = torch.tensor([1 - 2**-24])
    with ops.backend(backend):
        chosen, _ = ops.draw_tokens(logits, torch.ones(1), place)
    assert chosen.item() == W // 2 - 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_greedy_takes_the_first_of_equals(backend):
    logits = torch.tensor([[0.0, 3.0, 3.0, -1.0]])
    with ops.backend(backend):
        chosen, logprobs = ops.draw_tokens(logits, torch.zeros(1), torch.zeros(1))
    assert chosen.item() == 1
    assert logprobs.item() == pytest.approx(torch.log_softmax(logits, -1)[0, 1].item(), abs=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_says_so(backend, bad):
    logits = torch.zeros(2, 70)
    logits[0, 9] = bad
    with ops.backend(backend):
        chosen, logprobs = ops.draw_tokens(logits, torch.ones(2), torch.tensor([0.5, 0.5]))
    assert not logprobs[0].isfinite()
    assert logprobs[1].isfinite()
    assert 0 <= chosen[0] < 70
