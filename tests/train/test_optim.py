import pytest
import torch

from ziphius.train.optim import Optimizer, orthogonalise
from ziphius.train.settings import OptimizerSettings
from ziphius.train.weights import ReplicatedWeights


def random_grads(flat, steps):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(flat.master.shape, generator=generator) for _ in range(steps)]


@pytest.mark.parametrize("tied", [False, True])
def test_adamw_equals_torch(build, tied):
    """Over several steps and rates, with decay on the matrices only."""
    model, twin = build(tie_word_embeddings=tied), build(tie_word_embeddings=tied)
    flat = ReplicatedWeights(model, False)
    settings = OptimizerSettings(lr=1e-2, beta1=0.8, beta2=0.9, eps=1e-7, weight_decay=0.3)
    ours = Optimizer(flat, settings)
    matrices = [p for p in twin.parameters() if p.ndim > 1]
    vectors = [p for p in twin.parameters() if p.ndim == 1]
    theirs = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.3}, {"params": vectors, "weight_decay": 0.0}],
        lr=1e-2, betas=(0.8, 0.9), eps=1e-7,
    )  # fmt: skip
    for step, grad in enumerate(random_grads(flat, 6)):
        rate = 1e-2 / (step + 1)
        for slot in flat.slots:
            twin.get_parameter(slot.name).grad = grad[slot.part].view(slot.shape).clone()
        for group in theirs.param_groups:
            group["lr"] = rate
        theirs.step()
        ours.step(grad, rate)
    for name, p in twin.named_parameters():
        assert torch.allclose(flat.state()[name], p, rtol=1e-5, atol=1e-6), name
        assert torch.equal(model.get_parameter(name), flat.state()[name])


@pytest.mark.parametrize(("kind", "bf16", "most"), [("adamw", False, 2), ("adamw", True, 3), ("muon", True, 2)])
def test_few_spans(build, kind, bf16, most):
    """One fused call for what lies together, not one a tensor."""
    flat = ReplicatedWeights(build(), bf16)
    optimizer = Optimizer(flat, OptimizerSettings(kind=kind))
    covered = sum(span.stop - span.start for span, _ in optimizer.adam_spans)
    muon = [slot for slots in optimizer.muon_groups for slot in slots]
    assert covered + sum(slot.shape.numel() for slot in muon) == flat.master.numel()
    assert len(optimizer.adam_spans) <= most + (kind == "muon")


def test_bf16_weights_follow_the_master(build):
    model = build()
    flat = ReplicatedWeights(model, True)
    optimizer = Optimizer(flat, OptimizerSettings(weight_decay=0.0))
    before = flat.master.clone()
    for grad in random_grads(flat, 3):
        optimizer.step(grad, 1e-5)  # too small for one BF16 step, not for the master
    assert (flat.master != before).float().mean() > 0.99
    assert torch.equal(flat.working, flat.master[: flat.split].bfloat16())


@pytest.mark.parametrize("shape", [(1, 64, 24), (1, 24, 64), (3, 48, 16), (5, 16, 48)])
def test_orthogonalise(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(matrix))
    assert values.min() > 0.6
    assert values.max() < 1.3
    each = torch.cat([orthogonalise(one.unsqueeze(0)) for one in matrix])
    assert torch.allclose(orthogonalise(matrix), each, atol=0.01)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    assert (orthogonalise(matrix) * (left @ right)).sum() > 0.8 * min(shape[1:]) * shape[0]  # the nearest one


def test_muon_moves_block_matrices_by_its_scale_and_the_rest_by_adamw(build):
    model = build()
    flat = ReplicatedWeights(model, False)
    settings = OptimizerSettings(kind="muon", weight_decay=0.5)
    optimizer = Optimizer(flat, settings)
    names = {slot.name for slots in optimizer.muon_groups for slot in slots}
    assert len(optimizer.muon_groups) < len(names)  # equal shapes go together
    assert "model.embed_tokens.weight" not in names
    assert "lm_head.weight" not in names
    assert any(name.endswith("experts.gate_up_proj") for name in names)
    assert not any(flat.state()[name].ndim == 1 for name in names)
    twin = ReplicatedWeights(build(), False)
    adamw = Optimizer(twin, settings.model_copy(update={"kind": "adamw"}))
    grad, before = random_grads(flat, 1)[0], flat.master.clone()
    optimizer.step(grad, 0.01)
    adamw.step(grad, 0.01)
    for slot in flat.slots:
        if slot.name not in names:
            assert torch.equal(flat.master[slot.part], twin.master[slot.part])
            continue
        moved = (flat.master[slot.part] - before[slot.part] * (1 - 0.01 * 0.5)).view(slot.shape)
        expected = -0.01 * 0.2 * max(slot.shape[-2:]) ** 0.5
        expected = expected * orthogonalise(1.95 * grad[slot.part].view(-1, *slot.shape[-2:])).view(slot.shape)
        assert torch.allclose(moved, expected, atol=1e-4)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_state_continues_exactly(build, kind):
    settings = OptimizerSettings(kind=kind)
    flat = ReplicatedWeights(build(), True)
    optimizer = Optimizer(flat, settings)
    first, second, third = random_grads(flat, 3)
    optimizer.step(first, 1e-2)
    optimizer.step(second, 1e-2)
    other = ReplicatedWeights(build(5), True)
    resumed = Optimizer(other, settings)
    resumed.load_state_dict({key: value.clone() for key, value in optimizer.state_dict().items()})
    other.master.copy_(flat.master)
    optimizer.step(third, 1e-3)
    resumed.step(third, 1e-3)
    assert torch.equal(flat.master, other.master)
    assert resumed.updates == 3
