import pytest
import torch

from ziphius.train.flat import FlatParameters


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_values_stay_and_modules_work_on_views(build, bf16, tied):
    model = build(tie_word_embeddings=tied)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    flat = FlatParameters(model, bf16)
    assert flat.full_state().keys() == before.keys()
    for name, value in flat.full_state().items():
        assert torch.equal(value, before[name])
    flat.master.add_(1.0)
    flat.publish()
    for name, p in model.named_parameters():
        assert torch.equal(p, (before[name] + 1.0).to(p.dtype))
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied


def test_bf16_leaves_embedding_head_gates_and_norms_in_fp32(build):
    model = build()
    FlatParameters(model, True)
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
    flat = FlatParameters(build(), False)
    assert flat.split == 0
    assert flat.working.numel() == 0


@pytest.mark.parametrize("bf16", [False, True])
def test_gradients_are_collected_over_backward_passes(build, bf16):
    model = build()
    flat = FlatParameters(model, bf16)
    tokens = torch.randint(0, 64, (2, 12), generator=torch.Generator().manual_seed(1))

    def backward():
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            hidden = model.hidden(tokens)
            loss = model.lm_head(hidden).float().square().mean() + model.mtp_hidden(hidden, tokens)[0].square().mean()
        loss.backward()
        return flat.collect_grad().clone()

    once = backward()
    slots = {slot.name: once[slot.part].view(slot.shape) for slot in flat.slots}
    assert all(slot.abs().sum() > 0 for slot in slots.values())
    twice = backward()
    assert torch.allclose(twice, 2 * once, rtol=1e-6)  # in fp32: nothing is rounded on the way
    for name, p in model.named_parameters():
        assert p.grad is not None
        assert p.grad.dtype == p.dtype
        assert bf16 or torch.equal(p.grad, 2 * slots[name])
    flat.zero_grad()
    assert torch.equal(backward(), once)


def test_order_is_matrices_then_vectors_whatever_the_run(build):
    one, two = FlatParameters(build(0), True), FlatParameters(build(1), True)
    assert one.slots == two.slots
    rest = [len(slot.shape) > 1 for slot in one.slots if slot.start >= one.split]
    assert rest == sorted(rest, reverse=True)
    assert all(len(slot.shape) > 1 for slot in one.slots if slot.start < one.split)
    ends = [slot.part.stop for slot in one.slots]
    assert [slot.start for slot in one.slots] == [0, *ends[:-1]]
