import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ziphius import ops
from ziphius.ops import experts, triton
from ziphius.ops.experts import chosen_experts, every_expert, grouped_experts_reference

from .compare import agree, close, few, normal, seeds, sizes


def routing(seed, N, E, K):
    """K distinct experts for each of N tokens, and weights that sum to one."""
    generator = torch.Generator().manual_seed(seed)
    indices = torch.rand(N, E, generator=generator).topk(K, dim=1).indices
    return indices, normal(seed + 1, N, K).softmax(-1)


def weights_of(seed, E, D, F):
    return normal(seed, E, 2 * F, D) * D**-0.5, normal(seed + 1, E, D, F) * F**-0.5


def run(indices):
    return lambda x, w, gate_up, down: ops.grouped_experts(x, indices, w, gate_up, down)


over_shapes = given(
    N=st.integers(1, 40), D=sizes, F=sizes, E=st.integers(1, 12), K=st.integers(1, 4), seed=seeds,
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)  # fmt: skip


@few
@over_shapes
def test_backends_equal_reference(N, D, F, E, K, seed, dtype):
    indices, weights = routing(seed, N, E, min(K, E))
    inputs = normal(seed + 2, N, D), weights, *weights_of(seed + 3, E, D, F)
    agree(run(indices), *(x.to(dtype) for x in inputs))


@pytest.mark.parametrize("N", [1, 2, 33])
@pytest.mark.parametrize("chosen", [[0], [5], [2, 3]], ids=str)
def test_empty_experts(N, chosen):
    """Most experts get nothing, one gets everything: no gradient where nothing went."""
    E, D, F = 8, 6, 4
    indices = torch.tensor(chosen).repeat(N, 1)
    inputs = normal(0, N, D), normal(1, N, len(chosen)), *weights_of(2, E, D, F)
    agree(run(indices), *inputs)
    leaves = [x.clone().requires_grad_() for x in inputs]
    run(indices)(*leaves).sum().backward()
    idle = [e for e in range(E) if e not in chosen]
    assert torch.all(leaves[2].grad[idle] == 0)
    assert torch.all(leaves[3].grad[idle] == 0)
    assert all(leaves[2].grad[e].abs().sum() > 0 for e in chosen)


def test_one_token():
    indices, weights = routing(0, 1, 256, 8)
    agree(run(indices), normal(1, 1, 5), weights, *weights_of(2, 256, 5, 3))


def test_gradient():
    indices, weights = routing(0, 6, 5, 2)
    inputs = (normal(1, 6, 4), weights, *weights_of(2, 5, 4, 3))
    assert torch.autograd.gradcheck(run(indices), tuple(x.double().requires_grad_() for x in inputs))


def test_autocast():
    indices, weights = routing(0, 20, 6, 2)
    inputs = normal(1, 20, 8), weights, *weights_of(2, 6, 8, 5)
    agree(run(indices), *inputs, autocast=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert run(indices)(*inputs).dtype == torch.bfloat16


def test_it_is_deterministic_and_blind_to_the_order_of_tokens():
    indices, weights = routing(0, 30, 6, 3)
    x, matrices = normal(1, 30, 8), weights_of(2, 6, 8, 5)
    first = ops.grouped_experts(x, indices, weights, *matrices)
    assert torch.equal(first, ops.grouped_experts(x, indices, weights, *matrices))
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    close(ops.grouped_experts(x[order], indices[order], weights[order], *matrices), first[order])


def test_no_gradient_where_none_is_asked():
    indices, weights = routing(0, 5, 4, 2)
    with torch.no_grad():
        out = ops.grouped_experts(normal(1, 5, 4), indices, weights, *weights_of(2, 4, 4, 3))
    assert not out.requires_grad


@few
@over_shapes
def test_forms_that_count_nothing_equal_reference(N, D, F, E, K, seed, dtype):
    indices, weights = routing(seed, N, E, min(K, E))
    floats = normal(seed + 2, N, D), weights, *weights_of(seed + 3, E, D, F)
    x, weights, gate_up, down = (t.to(dtype) for t in floats)
    args = x, indices, weights, gate_up, down
    expected = grouped_experts_reference(*args)
    for form in (every_expert, chosen_experts):
        got = form(*args)
        assert got.dtype == dtype
        close(got, expected)


@pytest.mark.skipif(not triton.interpreted(), reason="needs Triton, and TRITON_INTERPRET without a GPU")
@pytest.mark.parametrize(("N", "form"), [(2, "chosen_experts"), (3, "every_expert"), (257, "_GroupedExperts")])
def test_a_gpu_counts_nothing_in_decoding(monkeypatch, N, form):
    """Two of twelve experts a token: copies for two tokens cost no more than reading all, for three they do."""
    for name in ("chosen_experts", "every_expert"):
        if name != form:
            monkeypatch.setattr(experts, name, lambda *args: pytest.fail("the wrong form"))
    if form != "_GroupedExperts":
        monkeypatch.setattr(experts, "_lay_out", lambda *args: pytest.fail("counts"))
    indices, weights = routing(0, N, 12, 2)
    args = normal(1, N, 5), indices, weights, *weights_of(2, 12, 5, 3)
    with ops.backend("triton"), torch.no_grad():
        close(ops.grouped_experts(*args), grouped_experts_reference(*args))
