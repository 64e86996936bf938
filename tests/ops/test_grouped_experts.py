import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from ziphius import ops
from ziphius.ops import experts, sorted_experts, triton
from ziphius.ops.experts import chosen_experts, every_expert, grouped_experts_reference
from ziphius.ops.sorted_experts import SortedExperts, expert_loads, takes_sorted

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


def with_gradients(form, x, indices, *floats):
    leaves = [t.clone().requires_grad_() for t in (x, *floats)]
    out = form(leaves[0], indices, *leaves[1:])
    return out, *torch.autograd.grad(out, leaves, normal(7, *out.shape, dtype=out.dtype).to(out.device))


@few
@given(
    N=st.integers(1, 40), D=st.integers(1, 3), F=st.integers(1, 3), E=st.integers(1, 12), K=st.integers(1, 4),
    seed=seeds, dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)  # fmt: skip
def test_sorted_rows_equal_reference(N, D, F, E, K, seed, dtype):
    """What a card runs; torch's grouped product wants rows of whole 16 bytes, and has a loop for the CPU."""
    indices, weights = routing(seed, N, E, min(K, E))
    floats = weights, *weights_of(seed + 3, E, 8 * D, 8 * F)
    args = normal(seed + 2, N, 8 * D).to(dtype), indices, *(t.to(dtype) for t in floats)
    expected = with_gradients(grouped_experts_reference, *args)
    for got, reference in zip(with_gradients(SortedExperts.apply, *args), expected, strict=True):
        assert got.dtype == dtype
        close(got, reference)


def test_frozen_experts_get_no_gradient():
    indices, weights = routing(0, 9, 4, 2)
    x, (gate_up, down) = normal(1, 9, 8).requires_grad_(), weights_of(2, 4, 8, 16)
    (grad,) = torch.autograd.grad(SortedExperts.apply(x, indices, weights, gate_up, down).sum(), x)
    (expected,) = torch.autograd.grad(grouped_experts_reference(x, indices, weights, gate_up, down).sum(), x)
    close(grad, expected)


def test_who_takes_sorted_rows(monkeypatch):
    x, down = torch.zeros(4, 16, dtype=torch.bfloat16), torch.zeros(2, 16, 24, dtype=torch.bfloat16)
    assert not takes_sorted(x, down), "a CPU has better"
    monkeypatch.setattr(sorted_experts, "groups_without_asking", lambda device: True)
    assert takes_sorted(x, down)
    assert not takes_sorted(x.float(), down.float()), "torch would fetch the groups' ends"
    assert not takes_sorted(x[:, :12], down[:, :12])
    assert not takes_sorted(x, down[:, :, :20])


def test_nothing_is_asked_of_the_device(monkeypatch):
    """The whole of a layer's routing, products and counts on tensors without values: to ask for one would raise."""
    monkeypatch.setattr(sorted_experts, "groups_without_asking", lambda device: True)
    with FakeTensorMode():
        logits = torch.empty(20, 8, requires_grad=True)
        _, indices, weights = ops.route(logits, torch.empty(8), 2)
        matrices = [torch.empty(*s, dtype=torch.bfloat16, requires_grad=True) for s in ((8, 32, 16), (8, 16, 16))]
        x = torch.empty(20, 16, dtype=torch.bfloat16)
        ops.grouped_experts(x, indices, weights, *matrices).sum().backward()
        loads = ops.expert_loads(indices, 8, torch.empty(20, dtype=torch.bool))
    assert loads.shape == (8,)
    assert logits.grad is not None
    assert matrices[0].grad.shape == (8, 32, 16)


def test_loads_count_the_valid_tokens_alone():
    indices = torch.tensor([[0, 2], [2, 3], [0, 1]])
    assert expert_loads(indices, 5).tolist() == [2, 1, 2, 1, 0]
    assert expert_loads(indices, 5, torch.tensor([True, False, True])).tolist() == [2, 1, 1, 0, 0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_sorted_rows_on_a_gpu():
    """Loads that no tile divides, and experts without any."""
    indices = torch.randint(0, 11, (777, 2), generator=torch.Generator().manual_seed(0))
    floats = normal(1, 777, 64), normal(2, 777, 2).softmax(-1), *weights_of(3, 16, 64, 40)
    x, *rest = (t.bfloat16().cuda() for t in floats)
    expected = with_gradients(grouped_experts_reference, x, indices.cuda(), *rest)
    for got, reference in zip(with_gradients(SortedExperts.apply, x, indices.cuda(), *rest), expected, strict=True):
        close(got, reference)
