import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ziphius.engine.draw import cut, draw
from ziphius.engine.random import sample_key, uniforms


def keep(p: torch.Tensor, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> torch.Tensor:
    rows = len(p)
    return cut(p, torch.full((rows,), top_k), torch.full((rows,), top_p), torch.full((rows,), min_p))


def plain_cut(p: np.ndarray, top_k: int, top_p: float, min_p: float) -> np.ndarray:
    """One row, token by token from the likeliest on."""
    order = sorted(range(len(p)), key=lambda i: -p[i])
    k = top_k or len(p)
    ranked = order[:k] + [i for i in order[k:] if p[i] == p[order[k - 1]]]
    mass, kept, last = 0.0, set(), 0.0
    total = sum(p[i] for i in order[:k])
    for i in ranked:
        if (mass >= top_p * total - 1e-7 and p[i] < last) or p[i] < min_p * p[order[0]]:
            break
        kept.add(i)
        mass, last = mass + p[i], p[i]
    return np.array([p[i] if i in kept else 0.0 for i in range(len(p))], np.float32)


def test_draws_have_the_distributions_shares():
    p = torch.softmax(torch.tensor([1.0, 0.0, -1.0, 2.0, -50.0]), -1)
    u = uniforms(np.full(40_000, sample_key(0, 0), np.uint64), np.arange(40_000))
    chosen, share = draw(p.repeat(len(u), 1), u)
    found = np.bincount(chosen, minlength=5) / len(u)
    assert found == pytest.approx(p.numpy(), abs=0.01)
    assert share == pytest.approx(p.numpy()[chosen])


def test_the_likeliest_comes_first_on_the_line():
    p = torch.tensor([[0.3, 0.5, 0.2]])
    for u, token in [(0.0, 1), (0.499, 1), (0.501, 0), (0.799, 0), (0.801, 2), (1 - 2**-24, 2)]:
        assert draw(p.clone(), np.array([u], np.float32))[0].tolist() == [token]
    tied = torch.tensor([[0.4, 0.4, 0.2]])
    assert draw(tied, np.zeros(1, np.float32))[0].tolist() == [0]


def test_a_token_without_mass_is_never_drawn():
    """Also where rounding makes the sum of the others fall short of the number."""
    p = torch.zeros(2000, 300)
    p[:, 10:200] = torch.rand(190, generator=torch.Generator().manual_seed(0))
    for u in (0.0, 0.5, 1 - 2**-24):
        chosen, share = draw(p.clone(), np.full(2000, u, np.float32))
        assert (share > 0).all()
        assert ((chosen >= 10) & (chosen < 200)).all()
    alone = torch.zeros(1, 5)
    alone[0, 3] = 0.25
    assert draw(alone, np.array([1 - 2**-24], np.float32))[0].tolist() == [3]


@given(
    st.integers(0, 999),
    st.integers(1, 4),
    st.sampled_from([0, 1, 2, 5, 39, 40, 90]),
    st.sampled_from([0.05, 0.3, 0.9, 0.999, 1.0]),
    st.sampled_from([0.0, 0.1, 0.6]),
    st.booleans(),
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_cuts_equal_a_plain_reference(seed, rows, top_k, top_p, min_p, tied):
    logits = torch.randn(rows, 40, generator=torch.Generator().manual_seed(seed)) * 3
    if tied:
        logits = logits.round()
    p = torch.softmax(logits.double(), -1).float()
    found = keep(p, top_k, top_p, min_p).numpy()
    for row, kept in zip(p.numpy(), found, strict=True):
        assert (kept > 0).tolist() == (plain_cut(row, top_k, top_p, min_p) > 0).tolist()
        assert ((kept == row) | (kept == 0)).all()


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.4, 1), (0.49, 1), (0.51, 2), (0.75, 2), (0.79, 3), (0.9, 3), (0.96, 4), (1.0, 4)]
)
def test_top_p_keeps_the_fewest_tokens_that_reach_it(top_p, kept):
    """Probabilities 0.5, 0.28, 0.17, 0.05, out of order."""
    p = torch.tensor([[0.17, 0.5, 0.05, 0.28]])
    assert (keep(p, top_p=top_p) > 0).nonzero()[:, 1].tolist() == sorted([1, 3, 0, 2][:kept])


def test_rows_with_different_cuts():
    p = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).repeat(4, 1)
    found = cut(p, torch.tensor([0, 2, 0, 0]), torch.tensor([1.0, 1.0, 0.65, 1.0]), torch.tensor([0.0, 0.0, 0.0, 0.6]))
    assert (found > 0).tolist() == [
        [True, True, True, True],
        [False, False, True, True],
        [False, False, True, True],
        [False, False, True, True],
    ]


def test_random_numbers_are_even_and_independent():
    keys = np.array([sample_key(seed, sample) for seed in range(64) for sample in range(64)], np.uint64)
    assert len(set(keys.tolist())) == len(keys)
    table = np.stack([uniforms(keys, np.full(len(keys), place)) for place in range(64)])
    assert table.min() >= 0
    assert table.max() < 1
    counts = np.bincount((table * 64).astype(int).ravel(), minlength=64)
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 110  # χ² of 63 degrees of freedom: 1 in 4,000
    for one, two in [(table[1:], table[:-1]), (table[:, 1:], table[:, :-1]), (table[:, 64:], table[:, :-64])]:
        assert abs(np.corrcoef(one.ravel(), two.ravel())[0, 1]) < 0.01
    assert sample_key(-1, 0) == sample_key(2**64 - 1, 0)
