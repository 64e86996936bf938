"""Recomputed and compiled blocks give what plain ones give, and recomputed ones keep less."""

import copy

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from ziphius import ops
from ziphius.model.experts import RouterStats
from ziphius.model.presets import ladder
from ziphius.model.transformer import Block, Transformer
from ziphius.ops import sorted_experts
from ziphius.ops import triton as kernels
from ziphius.train.batch import stack_rows
from ziphius.train.losses import next_token_loss
from ziphius.train.place import Place
from ziphius.train.settings import LossSettings, TrainSettings
from ziphius.train.speed import compiling_pays, set_speed
from ziphius.train.trainer import Trainer
from ziphius.train.weights import ReplicatedWeights

from ..packed import pack_samples
from .stub import Fixed

KINDS = ["none", "selective", "full"]


def packed_batch(length=16):
    ids = torch.randint(3, 64, (3 * length,), generator=torch.Generator().manual_seed(0)).tolist()
    samples = [(ids[i : i + n], [0.0] + [1.0] * (n - 1)) for i, n in ((0, length), (16, 5), (21, 7), (28, 9))]
    return stack_rows(pack_samples(samples, length, 2), masked=True)


def outcome(model, batch, bf16=False):
    """The loss's parts, and every gradient."""
    model.zero_grad()
    with torch.autocast(batch.tokens.device.type, torch.bfloat16, enabled=bf16):
        parts = next_token_loss(model, batch, LossSettings(balance_weight=0.1), 30.0)
    parts.total.backward()
    return parts, [p.grad for p in model.parameters()]


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("kind", ["selective", "full"])
def test_recomputation_changes_no_bit(build, kind, bf16, backend):
    model, batch = build(), packed_batch()
    with ops.backend(backend):
        before, grads = outcome(model, batch, bf16)
        set_speed(model, kind, False)
        after, again = outcome(model, batch, bf16)
    assert torch.equal(before.total, after.total)
    assert all(map(torch.equal, grads, again))
    assert all(map(torch.equal, before.loads, after.loads)), "the gates count once"
    assert len(after.loads) == 2


@pytest.mark.parametrize("bf16", [False, True])
def test_recomputation_keeps_less(monkeypatch, bf16):
    """What stays allocated between the passes: with padded rows in fp32, with sorted ones in bf16."""
    monkeypatch.setattr(sorted_experts, "groups_without_asking", lambda device: bf16)
    config = ladder(4, 64, num_nextn_predict_layers=0)
    tokens = torch.zeros(2, 64, dtype=torch.int64)
    kept = {}
    for kind in KINDS:
        model = Transformer(config)
        model.init_weights(torch.Generator().manual_seed(0))
        ReplicatedWeights(model, bf16)
        set_speed(model, kind, False)
        with ops.backend("torch"), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            model.hidden(tokens, stats=RouterStats())  # makes the table of positions
            with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
                hidden = model.hidden(tokens, stats=RouterStats())
        kept[kind] = sum(event.self_cpu_memory_usage for event in profiler.key_averages())
        del hidden
    entering = config.num_hidden_layers * tokens.numel() * config.hidden_size * 4
    assert kept["full"] < 3 * entering
    assert kept["full"] < 0.6 * kept["selective"]
    assert kept["selective"] < 0.7 * kept["none"]


def test_only_training_is_changed(build):
    """Without gradients, or without statistics, a block is what it was; so is a copy, with the copy's weights."""
    model, tokens = build(), torch.arange(8).view(1, 8)
    with torch.no_grad():
        plain = model.hidden(tokens)
        set_speed(model, "full", False)
        assert torch.equal(model.hidden(tokens), plain)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.zero_()
    assert torch.equal(twin.hidden(tokens, stats=RouterStats()), plain)
    assert not torch.equal(model.hidden(tokens, stats=RouterStats()), plain)
    assert set(twin.state_dict()) == set(model.state_dict()) == set(build().state_dict())


@pytest.mark.skipif(not kernels.interpreted(), reason="needs Triton's interpreter")
def test_a_compiled_block_is_one_graph_and_agrees(build, monkeypatch):
    """As on a card: packed samples by the kernel, experts in sorted rows, products kept and the rest recomputed."""
    monkeypatch.setattr(ops.attention, "backend_for", lambda *tensors: "triton")
    monkeypatch.setattr(sorted_experts, "groups_without_asking", lambda device: True)
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda call: compiler(call, backend="aot_eager", fullgraph=True))
    torch._dynamo.reset()
    model, batch = build(num_nextn_predict_layers=0, first_k_dense_replace=0, num_hidden_layers=1), packed_batch()
    before, grads = outcome(model, batch, bf16=True)
    set_speed(model, "selective", True)
    after, again = outcome(model, batch, bf16=True)
    assert after.total.item() == pytest.approx(before.total.item(), rel=1e-2)
    assert torch.equal(after.loads[0], before.loads[0])
    for grad, other in zip(grads, again, strict=True):
        assert (grad - other).norm() <= 0.05 * grad.norm() + 1e-6


def test_all_blocks_are_reached(build):
    model = build(num_nextn_predict_layers=2)
    set_speed(model, "full", False)
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    assert len(blocks) == model.config.num_hidden_layers + 2
    assert all("forward" in vars(block) for block in blocks)


def test_compiling_pays_on_a_gpu_for_large_networks(build):
    gpu, small = Place(device=torch.device("cuda", 0)), build()
    with torch.device("meta"):
        large = Transformer(ladder(15))
    assert [compiling_pays(model, place) for model in (small, large) for place in (Place(), gpu)] == [0, 0, 0, 1]


@pytest.mark.parametrize(("asked", "compiled"), [("auto", False), (True, True), (False, False)])
def test_the_trainer_asks_for_what_its_settings_say(build, tmp_path, monkeypatch, asked, compiled):
    seen = []
    monkeypatch.setattr("ziphius.train.trainer.set_speed", lambda model, *settings: seen.append(settings))
    settings = TrainSettings(steps=10, recompute="full", compile=asked)
    Trainer(build(), Fixed([[]]), lambda *_: None, settings, tmp_path)
    assert seen == [("full", compiled)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_blocks_on_a_gpu(kind):
    """V3's heads in bf16, packed samples, experts in sorted rows, by torch's own compiler."""
    heads = {"qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "num_attention_heads": 2}
    model = Transformer(ladder(2, 64, hidden_size=64, n_routed_experts=4, initializer_range=0.1, **heads))
    model.init_weights(torch.Generator().manual_seed(0))
    place = Place(device=torch.device("cuda"))
    model, batch = model.to(place.device), place.put(packed_batch(64))
    before, grads = outcome(model, batch, bf16=True)
    set_speed(model, kind, True)
    after, again = outcome(model, batch, bf16=True)
    assert after.total.item() == pytest.approx(before.total.item(), rel=2e-2)
    for grad, other in zip(grads, again, strict=True):
        assert (grad - other).norm() <= 0.1 * grad.norm() + 1e-6
