import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ziphius import ops
from ziphius.ops import loss

from .compare import agree, close, few, normal, seeds

TEMPERATURES = [0.6, 1.0, 2.0]


def targets_of(seed, N, W):
    return torch.randint(0, W, (N,), generator=torch.Generator().manual_seed(seed))


@few
@given(
    N=st.integers(1, 30), D=st.integers(1, 9), W=st.integers(1, 50), seed=seeds,
    temperature=st.sampled_from(TEMPERATURES), dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)  # fmt: skip
def test_backends_equal_reference(N, D, W, seed, temperature, dtype):
    targets = targets_of(seed, N, W)
    x, head = normal(seed + 1, N, D, dtype=dtype), normal(seed + 2, W, D, dtype=dtype)
    agree(lambda x, head: ops.linear_cross_entropy(x, head, targets, temperature).logprobs, x, head)
    results = []
    for backend in ("auto", "reference"):
        with ops.backend(backend):
            results.append(ops.linear_cross_entropy(x, head, targets, temperature))
    assert results[0].logprobs.dtype == results[0].entropy.dtype == torch.float32
    assert (results[0].entropy - results[1].entropy).abs().max() < 1e-4


def test_a_frozen_head_gets_no_gradient():
    x, head, targets = normal(0, 17, 6).requires_grad_(), normal(1, 20, 6).requires_grad_(), targets_of(2, 17, 20)
    (with_head, _), frozen = (
        torch.autograd.grad(ops.linear_cross_entropy(x, each, targets, 0.7).logprobs.sum(), inputs)
        for each, inputs in ((head, (x, head)), (head.detach(), (x,)))
    )
    assert torch.equal(with_head, frozen[0])


@pytest.mark.parametrize("elements", [1, 60, 10_000])
def test_chunks_change_nothing(elements, monkeypatch):
    """One token a chunk, a few, all at once."""
    x, head, targets = normal(0, 17, 6), normal(1, 20, 6), targets_of(2, 17, 20)
    monkeypatch.setattr(loss, "_CHUNK_ELEMENTS", elements)
    agree(lambda x, head: ops.linear_cross_entropy(x, head, targets, 0.7).logprobs, x, head)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_formula(temperature):
    x, head, targets = normal(0, 9, 6), normal(1, 20, 6), targets_of(2, 9, 20)
    got = ops.linear_cross_entropy(x, head, targets, temperature)
    logits = x @ head.t() / temperature
    close(got.logprobs, -torch.nn.functional.cross_entropy(logits, targets, reduction="none"))
    close(got.entropy, torch.distributions.Categorical(logits=logits).entropy())


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_gradient(temperature):
    """Log-probabilities are fp32: gradcheck in float64 with steps that fp32 resolves."""
    targets = targets_of(0, 5, 7)
    inputs = tuple(t.double().requires_grad_() for t in (normal(1, 5, 4), normal(2, 7, 4)))
    assert torch.autograd.gradcheck(
        lambda x, head: ops.linear_cross_entropy(x, head, targets, temperature).logprobs,
        inputs, eps=1e-2, atol=5e-3, rtol=5e-3,
    )  # fmt: skip


@pytest.mark.parametrize("backend", ["auto", "torch", "reference"])
def test_entropy_carries_no_gradient(backend):
    x = normal(0, 4, 3).requires_grad_()
    with ops.backend(backend):
        out = ops.linear_cross_entropy(x, normal(1, 5, 3), targets_of(2, 4, 5))
    assert not out.entropy.requires_grad
    assert out.logprobs.requires_grad


def test_unused_rows_get_no_gradient():
    """A zero upstream gradient (a token whose loss is masked) leaves no trace."""
    x, head, targets = normal(0, 6, 3).requires_grad_(), normal(1, 5, 3), targets_of(2, 6, 5)
    logprobs = ops.linear_cross_entropy(x, head, targets).logprobs
    (logprobs * torch.tensor([1.0, 0, 1, 0, 0, 1])).sum().backward()
    assert torch.all(x.grad[[1, 3, 4]] == 0)
    assert torch.all(x.grad[[0, 2, 5]].abs().sum(-1) > 0)


def test_extreme_logits_stay_finite():
    x, head = torch.full((2, 1), 100.0), torch.tensor([[100.0], [-100.0], [0.0]])
    out = ops.linear_cross_entropy(x, head, torch.tensor([0, 1]))
    close(out.logprobs, torch.tensor([0.0, -20000.0]))
    assert torch.all(out.entropy.abs() < 1e-2)


def test_autocast():
    targets = targets_of(2, 17, 20)
    x, head = normal(0, 17, 6), normal(1, 20, 6)
    agree(lambda x, head: ops.linear_cross_entropy(x, head, targets, 0.7).logprobs, x, head, autocast=True)
