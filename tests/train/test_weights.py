import pytest
import torch

from ziphius.train.optim import Optimizer
from ziphius.train.settings import OptimizerSettings
from ziphius.train.weights import ReplicatedWeights


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_values_stay_and_modules_work_on_views(build, bf16, tied):
    model = build(tie_word_embeddings=tied)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    flat = ReplicatedWeights(model, bf16)
    state = flat.state()
    assert state.keys() == model.state_dict().keys()
    for name, value in before.items():
        assert torch.equal(state[name], value)
        assert state[name].dtype == torch.float32
    assert torch.equal(state["lm_head.weight"], model.lm_head.weight)
    flat.master.add_(1.0)
    flat.publish()
    for name, p in model.named_parameters():
        assert torch.equal(p, (before[name] + 1.0).to(p.dtype))
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied


def test_bf16_leaves_embedding_head_gates_and_norms_in_fp32(build):
    model = build()
    ReplicatedWeights(model, True)
    kept = {name for name, p in model.named_parameters() if p.dtype == torch.float32}
    assert {n for n in kept if model.get_parameter(n).ndim > 1} == {
        "model.embed_tokens.weight",
        "lm_head.weight",
        *(n for n in before_names(model) if n.endswith("mlp.gate.weight")),
    }
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.ndim == 1)
    low = [p for p in model.parameters() if p.dtype == torch.bfloat16]
    assert sum(p.numel() for p in low) > sum(p.numel() for p in model.parameters()) / 2


def before_names(model):
    return [name for name, _ in model.named_parameters()]


def test_fp32_has_no_working_copy(build):
    flat = ReplicatedWeights(build(), False)
    assert flat.split == 0
    assert flat.working.numel() == 0


@pytest.mark.parametrize("bf16", [False, True])
def test_gradients_are_collected_over_backward_passes(build, bf16):
    model = build()
    flat = ReplicatedWeights(model, bf16)
    tokens = torch.randint(0, 64, (2, 12), generator=torch.Generator().manual_seed(1))

    def backward():
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            hidden = model.hidden(tokens)
            loss = model.lm_head(hidden).float().square().mean() + model.mtp_hidden(hidden, tokens)[0].square().mean()
        loss.backward()
        flat.collect()
        return flat.grad.clone()

    once = backward()
    slots = {slot.name: once[slot.part].view(slot.shape) for slot in flat.slots}
    assert all(slot.abs().sum() > 0 for slot in slots.values())
    twice = backward()
    assert torch.allclose(twice, 2 * once, rtol=1e-6)  # in fp32: nothing is rounded on the way
    for name, p in model.named_parameters():
        assert p.grad is not None
        assert p.grad.dtype == p.dtype
        assert bf16 or torch.equal(p.grad, 2 * slots[name])
    flat.zero()
    assert torch.equal(backward(), once)


def test_order_is_matrices_then_vectors_whatever_the_run(build):
    one, two = ReplicatedWeights(build(0), True), ReplicatedWeights(build(1), True)
    assert one.slots == two.slots
    rest = [len(slot.shape) > 1 for slot in one.slots if slot.start >= one.split]
    assert rest == sorted(rest, reverse=True)
    assert all(len(slot.shape) > 1 for slot in one.slots if slot.start < one.split)
    ends = [slot.part.stop for slot in one.slots]
    assert [slot.start for slot in one.slots] == [0, *ends[:-1]]


@pytest.mark.parametrize("frozen_dtype", [torch.float32, torch.bfloat16])
def test_frozen_parameters_stay_outside_in_their_own_dtype(build, frozen_dtype):
    """As with LoRA: a few trained tensors beside a base that is held."""
    model = build(tie_word_embeddings=True)
    trained = {"model.layers.1.self_attn.o_proj.weight", "model.norm.weight"}
    for name, p in model.named_parameters():
        if name not in trained:
            p.requires_grad_(False).data = p.data.to(frozen_dtype)
    held = {name: p.clone() for name, p in model.named_parameters() if name not in trained}
    weights = ReplicatedWeights(model, True)
    assert {slot.name for slot in weights.slots} == trained
    optimizer = Optimizer(weights, OptimizerSettings())
    sizes = {x.numel() for x in (weights.master, weights.grad, optimizer.first, optimizer.second)}
    assert sizes == {sum(model.get_parameter(name).numel() for name in trained)}
    with torch.autocast("cpu", torch.bfloat16):
        model.hidden(torch.arange(12).view(1, 12)).float().square().sum().backward()
    weights.collect()
    optimizer.step(weights.total(lambda grad: grad), 1e-2)
    state = weights.state()
    for name, value in held.items():
        assert model.get_parameter(name).grad is None
        assert state[name].dtype == frozen_dtype
        assert torch.equal(state[name], value)
    assert torch.equal(state["lm_head.weight"], held["model.embed_tokens.weight"])
    assert all(state[name].dtype == torch.float32 for name in trained)
    assert torch.equal(state["model.norm.weight"], model.model.norm.weight)
    assert not torch.equal(state["model.norm.weight"], torch.ones(32)), "it has learned"


def test_a_model_that_is_all_frozen_is_refused(build):
    with pytest.raises(ValueError, match="every parameter of the model is frozen"):
        ReplicatedWeights(build().requires_grad_(False), False)
