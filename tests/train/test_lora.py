"""Low-rank updates: what they compute, what of a network they train, what is saved of them, and what goes on."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from ziphius.checkpoint import CheckpointError, load_model, save_model
from ziphius.checkpoint.adapter import Adapter, Factors, save_adapter
from ziphius.model.families import FAMILIES
from ziphius.model.presets import ladder
from ziphius.model.transformer import Transformer
from ziphius.train.batch import Batch
from ziphius.train.lora import LoRA
from ziphius.train.losses import next_token_loss
from ziphius.train.settings import LoRASettings, LossSettings, SFTTrainSettings, TrainSettings
from ziphius.train.trainer import Trainer

from .stub import Fixed

SHAPE = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "vocab_size": 64, "initializer_range": 0.1,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LOSS = LossSettings(mtp_weight=0.0, balance_weight=0.0)


def network(kind, seed=0, **more):
    if kind == "deepseek":
        config = ladder(2, 64, hidden_size=32, n_routed_experts=4, initializer_range=0.1, **more)
    else:
        shape = SHAPE | (EXPERTS if kind == "qwen3_moe" else {}) | more
        config = FAMILIES[kind](model_type=kind, **shape)
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(seed))
    return model


def moved(lora, seed=5):
    """Give the updates values, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for update in lora.updates.values():
            update.B.normal_(0, 0.05, generator=generator)
    return lora


def batch(seed=0):
    tokens = torch.randint(0, 64, (2, 12), generator=torch.Generator().manual_seed(seed))
    return Batch(tokens, torch.ones(2, 12))


def adapted(kind, experts=True, **settings):
    model = network(kind)
    return model, moved(LoRA(model, LoRASettings(rank=3, alpha=6, experts=experts, **settings), seed=1))


def loss_of(model):
    return next_token_loss(model, batch(), LOSS, 10.0).total


KINDS = ["deepseek", "llama", "qwen2", "qwen3_moe"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_adapted_network_is_the_one_with_merged_weights(kind):
    model, lora = adapted(kind)
    sampler = lora.sampler()
    plain = network(kind)(batch().tokens).logits
    lora.refresh(sampler)
    logits = model(batch().tokens).logits
    assert (logits - plain).abs().max() > 0.01
    torch.testing.assert_close(sampler(batch().tokens).logits, logits, atol=2e-5, rtol=1e-4)
    with lora.off():
        torch.testing.assert_close(model(batch().tokens).logits, plain)
    shared = dict(sampler.named_parameters())
    own = {name for name, p in model.named_parameters() if name in shared and p.data_ptr() != shared[name].data_ptr()}
    assert own == {f"{path}.{name}" for path, module in lora.adapted.items() for name in module.merged()}


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_through_the_merged_matrices(kind):
    """dA = s·Bᵀ dW and dB = s·dW Aᵀ, with dW the whole network's gradient on the published matrix."""
    model, lora = adapted(kind)
    loss_of(model).backward()
    merged = lora.sampler()
    lora.refresh(merged)
    merged.requires_grad_(True)
    loss_of(merged).backward()
    whole = {name: p.grad for name, p in merged.named_parameters()}
    for site in lora.sites:
        update = lora.updates[f"{site.module}/{site.part}"]
        [owner] = [name for name in whole if name.startswith(f"{site.module}.") and whole[name] is not None and (
            not site.stacked or name.endswith("down_proj") == (site.part == "down_proj"))
            and not name.endswith(".bias")]  # fmt: skip
        grad = whole[owner]
        if site.part in ("gate_proj", "up_proj"):
            grad = grad.chunk(2, dim=-2)[site.part == "up_proj"]
        torch.testing.assert_close(update.A.grad, update.scale * update.B.mT @ grad, atol=1e-5, rtol=1e-3)
        torch.testing.assert_close(update.B.grad, update.scale * grad @ update.A.mT, atol=1e-5, rtol=1e-3)
    assert all(p.grad is None for name, p in model.named_parameters() if ".lora." not in name)


def test_targets_and_experts_choose_the_matrices():
    model = network("qwen3_moe")
    lora = LoRA(model, LoRASettings(targets=["q_proj", "v_proj"]), seed=0)
    assert {site.rpartition("/")[2] for site in lora.updates} == {"q_proj", "v_proj"}
    assert not any("experts" in path for path in adapted("qwen3_moe", experts=False)[1].adapted)
    with pytest.raises(ValueError, match=r"no matrix called 'qkv'; it has k_proj, o_proj, q_proj, v_proj"):
        LoRA(network("qwen3_moe"), LoRASettings(targets=["qkv"]), seed=0)
    with pytest.raises(ValueError, match="use 'adamw'"):
        SFTTrainSettings(lora={"rank": 2}, optimizer={"kind": "muon"})


# --- training --------------------------------------------------------------------------------------------------------


def train(folder, steps, stop=None, **settings):
    """A trainer on adapted BF16 weights that has made `stop` of its `steps`."""
    model = network("deepseek")
    for p in model.parameters():
        p.data = p.data.bfloat16()
    lora = LoRA(model, LoRASettings(rank=2, experts=True), seed=0)
    source = Fixed([[batch(step)] for step in range(4)])
    loss = lambda model, batch, norm: next_token_loss(model, batch, LOSS, norm)
    settings = TrainSettings(steps=steps, save_every=2, optimizer={"lr": 1e-2}, **settings)
    trainer = Trainer(model, source, loss, settings, folder)
    if stop is None:
        trainer.run()
    else:
        trainer._resume()
        for _ in range(stop):
            trainer.step()
        trainer._save()
    return trainer, lora


def test_only_the_factors_are_trained_and_kept(tmp_path):
    before = network("deepseek").state_dict()
    trainer, lora = train(tmp_path, 4)
    after = trainer.model.state_dict()
    factors = sum(p.numel() for update in lora.updates.values() for p in update.parameters())
    assert trainer.weights.master.numel() == factors == trainer.optimizer.first.numel()
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor if "bias" in name else tensor.bfloat16()), name
    assert all(update.B.abs().sum() > 0 for name, update in lora.updates.items() if "experts" not in name)


def test_a_stopped_stage_goes_on_to_the_same_bits(tmp_path):
    whole, _ = train(tmp_path / "whole", 4)
    train(tmp_path / "parts", 4, stop=2)
    rest, _ = train(tmp_path / "parts", 4)
    assert torch.equal(whole.weights.master, rest.weights.master)


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_loads_as_the_same_network(kind, tmp_path):
    model, lora = adapted(kind)
    save_model(network(kind), tmp_path / "base")
    save_adapter(Adapter.on(tmp_path / "base", lora.factors()), model.config, tmp_path / "adapter", None)
    loaded = load_model(tmp_path / "adapter")
    torch.testing.assert_close(loaded(batch().tokens).logits, model(batch().tokens).logits, atol=2e-5, rtol=1e-4)
    assert "lora_A" not in str(loaded.state_dict().keys())


def test_a_base_that_keeps_its_experts_stacked(tmp_path):
    """As transformers 5 writes them: the adapter's single experts find their place."""
    model, lora = adapted("qwen3_moe")
    save_model(network("qwen3_moe"), tmp_path / "base")
    plain = network("qwen3_moe").state_dict()
    save_file({name: tensor.contiguous() for name, tensor in plain.items()}, tmp_path / "base" / "model.safetensors")
    save_adapter(Adapter.on(tmp_path / "base", lora.factors()), model.config, tmp_path / "adapter", None)
    loaded = load_model(tmp_path / "adapter")
    torch.testing.assert_close(loaded(batch().tokens).logits, model(batch().tokens).logits, atol=2e-5, rtol=1e-4)


def test_a_second_adapter_is_stacked_on_the_first(tmp_path):
    model, lora = adapted("llama", targets=["q_proj", "up_proj"])
    save_model(network("llama"), tmp_path / "base")
    save_adapter(Adapter.on(tmp_path / "base", lora.factors()), model.config, tmp_path / "one", None)
    second = load_model(tmp_path / "one")
    more = moved(LoRA(second, LoRASettings(rank=2, targets=["q_proj", "o_proj"]), seed=9), seed=9)
    save_adapter(Adapter.on(tmp_path / "one", more.factors()), model.config, tmp_path / "two", None)
    about = json.loads((tmp_path / "two" / "adapter_config.json").read_text())
    assert about["base_model_name_or_path"] == str(tmp_path / "base")
    assert set(about["rank_pattern"].values()) == {2, 3}
    loaded = load_model(tmp_path / "two")
    torch.testing.assert_close(loaded(batch().tokens).logits, second(batch().tokens).logits, atol=2e-5, rtol=1e-4)


def test_a_copied_run_finds_its_base_beside_the_adapter(tmp_path):
    model, lora = adapted("llama")
    save_model(network("llama"), tmp_path / "run" / "base")
    save_adapter(Adapter.on(tmp_path / "run" / "base", lora.factors()), model.config, tmp_path / "run" / "sft", None)
    (tmp_path / "run").rename(tmp_path / "copy")
    load_model(tmp_path / "copy" / "sft")
    (tmp_path / "copy" / "base").rename(tmp_path / "copy" / "other")
    with pytest.raises(ValueError, match=r"is an adapter of .*base, which is not there; put that model back"):
        load_model(tmp_path / "copy" / "sft")


def written(tmp_path):
    save_model(network("llama"), tmp_path / "base")
    model, lora = adapted("llama")
    save_adapter(Adapter.on(tmp_path / "base", lora.factors()), model.config, tmp_path / "adapter", None)
    return tmp_path / "adapter"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "weight-decomposed updates"),
        ({"peft_type": "IA3"}, "only LORA is read"),
        ({"bias": "all"}, "biases were trained"),
        ({"modules_to_save": ["lm_head"]}, "whole modules trained beside the factors"),
    ],
)
def test_adapters_of_other_kinds_are_refused(tmp_path, change, message):
    path = written(tmp_path) / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path / "adapter")


def test_an_adapter_of_another_network_or_cut_short(tmp_path):
    folder = written(tmp_path)
    save_model(network("llama", hidden_size=16), tmp_path / "base")
    shutil.copy(tmp_path / "base" / "config.json", folder)
    with pytest.raises(
        CheckpointError, match=r"the adapter updates .* of shape \[\d+, \d+\], and .*base has one of shape"
    ):
        load_model(folder)
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="cut short"):
        load_model(folder)


def test_scales_are_read_as_peft_means_them(tmp_path):
    """alpha / rank, or alpha / √rank; and single matrices may have another alpha."""
    folder = written(tmp_path)
    path = folder / "adapter_config.json"
    about = json.loads(path.read_text())
    name = "model.layers.1.self_attn.q_proj"
    assert Adapter.read(folder).factors[name].scale == pytest.approx(2)
    path.write_text(json.dumps(about | {"use_rslora": True}))
    assert Adapter.read(folder).factors[name].scale == pytest.approx(6 / 3**0.5)
    path.write_text(json.dumps(about | {"alpha_pattern": {"layers.1.self_attn.q_proj": 9}}))
    scales = {name: factors.scale for name, factors in Adapter.read(folder).factors.items()}
    assert scales[name] == pytest.approx(3)
    assert scales["model.layers.0.self_attn.q_proj"] == pytest.approx(2)


def test_merging_a_matrix_is_exact():
    A, B = torch.randn(2, 5), torch.randn(4, 2)
    adapter = Adapter(None, {"m": Factors(A, B, 0.5)})
    W = torch.randn(4, 5)
    torch.testing.assert_close(adapter.merged("m.weight", W), W + 0.5 * B @ A)
    assert adapter.merged("n.weight", W) is W


# --- PEFT ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("llama", {}),
        ("qwen2", {}),
        ("deepseek", {"targets": ["kv_b_proj", "o_proj"]}),  # PEFT takes any MLP's names for the routed experts'
        ("qwen3_moe", {"targets": ["gate_proj", "up_proj", "down_proj"], "experts": True}),
    ],
)
def test_peft_reads_what_is_written_and_writes_what_is_read(kind, settings, tmp_path):
    peft = pytest.importorskip("peft", reason="peft is not installed (pip install ziphius[dev])")
    from transformers import AutoModelForCausalLM

    model = network(kind)
    lora = moved(LoRA(model, LoRASettings(rank=3, alpha=6, **settings), seed=1))
    save_model(network(kind), tmp_path / "base")
    save_adapter(Adapter.on(tmp_path / "base", lora.factors()), model.config, tmp_path / "ours", None)
    theirs = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32), tmp_path / "ours"
    )
    with torch.no_grad():
        logits = theirs(batch().tokens).logits
    torch.testing.assert_close(logits, model(batch().tokens).logits, atol=2e-5, rtol=1e-4)

    targets = ["kv_b_proj", "o_proj"] if kind == "deepseek" else ["q_proj", "o_proj"]
    config = peft.LoraConfig(r=4, lora_alpha=10, target_modules=targets, init_lora_weights=False, use_rslora=True)
    made = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32), config)
    made.save_pretrained(tmp_path / "theirs")
    shutil.copy(tmp_path / "base" / "config.json", tmp_path / "theirs")
    with torch.no_grad():
        logits = made(batch().tokens).logits
    torch.testing.assert_close(load_model(tmp_path / "theirs")(batch().tokens).logits, logits, atol=2e-5, rtol=1e-4)
