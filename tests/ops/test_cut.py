import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ziphius.ops.cut import Cuts, cut


def keep(logits: torch.Tensor, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> torch.Tensor:
    """Whether each token of each row stays."""
    rows = len(logits)
    given = torch.full((rows,), top_k), torch.full((rows,), top_p), torch.full((rows,), min_p)
    found = cut(logits, torch.ones(rows), Cuts(*given))
    kept = found.isfinite()
    assert (found[kept] == logits[kept]).all()
    return kept


def plain_cut(p: np.ndarray, top_k: int, top_p: float, min_p: float) -> np.ndarray:
    """One row, token by token from the likeliest on."""
    order = sorted(range(len(p)), key=lambda i: -p[i])
    k = top_k or len(p)
    ranked = order[:k] + [i for i in order[k:] if p[i] == p[order[k - 1]]]
    mass, kept, last = 0.0, set(), 0.0
    total = sum(p[i] for i in order[:k])
    for i in ranked:
        if (top_p < 1 and mass >= top_p * total - 1e-7 and p[i] < last) or p[i] < min_p * p[order[0]]:
            break
        kept.add(i)
        mass, last = mass + p[i], p[i]
    return np.array([p[i] if i in kept else 0.0 for i in range(len(p))], np.float32)


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
    p = torch.softmax(logits, -1)
    found = keep(logits, top_k, top_p, min_p).numpy()
    for row, kept in zip(p.numpy(), found, strict=True):
        assert kept.tolist() == (plain_cut(row, top_k, top_p, min_p) > 0).tolist()


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.4, 1), (0.49, 1), (0.51, 2), (0.75, 2), (0.79, 3), (0.9, 3), (0.96, 4), (1.0, 4)]
)
def test_top_p_keeps_the_fewest_tokens_that_reach_it(top_p, kept):
    """Probabilities 0.5, 0.28, 0.17, 0.05, out of order."""
    p = torch.tensor([[0.17, 0.5, 0.05, 0.28]])
    assert keep(p.log(), top_p=top_p).nonzero()[:, 1].tolist() == sorted([1, 3, 0, 2][:kept])


def test_rows_with_different_cuts():
    p = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).repeat(4, 1)
    given = torch.tensor([0, 2, 0, 0]), torch.tensor([1.0, 1.0, 0.65, 1.0]), torch.tensor([0.0, 0.0, 0.0, 0.6])
    assert cut(p.log(), torch.ones(4), Cuts(*given)).isfinite().tolist() == [
        [True, True, True, True],
        [False, False, True, True],
        [False, False, True, True],
        [False, False, True, True],
    ]


def test_the_cut_is_of_the_shares_at_the_temperature():
    logits = torch.tensor([[0.0, 1.0, 2.0]]).repeat(2, 1)
    given = torch.zeros(2, dtype=torch.long), torch.full((2,), 0.8), torch.zeros(2)
    found = cut(logits, torch.tensor([1.0, 0.5]), Cuts(*given))  # 0.09, 0.24, 0.67 and 0.02, 0.12, 0.87
    assert found.isfinite().tolist() == [[False, True, True], [False, False, True]]
