"""Logits and greedy text equal those of transformers, for folders written by either side."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from ziphius.checkpoint import load_model, save_model

from .variants import FAMILIES, network, randomise, tokens_of, v3

TOLERANCE = 1e-5


def theirs_from(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def their_own(config, folder):
    """A network that transformers built from our config.json and filled with random weights."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config.to_hf()))
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), attn_implementation="eager").eval()
    randomise(model.state_dict(), seed=1)
    return model


@torch.no_grad()
def greedy(model, tokens, count):
    for _ in range(count):
        tokens = torch.cat([tokens, model(tokens).logits[:, -1:].argmax(-1)], dim=1)
    return tokens


def assert_same_network(ours, theirs):
    tokens = tokens_of(ours.config, (2, 70))
    with torch.no_grad():
        expected = theirs(tokens).logits
        got = ours(tokens).logits
    assert 0.3 < expected.std() < 3, "logits should be of order one for the tolerance to mean something"
    assert (got - expected).abs().max() <= TOLERANCE
    settings = GenerationConfig(max_new_tokens=32, do_sample=False, pad_token_id=0)
    prompt = tokens[:1, :20]
    assert torch.equal(greedy(ours, prompt, 32), theirs.generate(prompt, settings))


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_our_folder_opens_in_transformers(config, tmp_path):
    ours = network(config)
    save_model(ours, tmp_path)
    assert_same_network(ours, theirs_from(tmp_path))


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_their_folder_opens_here(config, tmp_path):
    theirs = their_own(config, tmp_path / "config")
    theirs.save_pretrained(tmp_path / "model")
    ours = load_model(tmp_path / "model")
    tokens = tokens_of(config, (2, 70))
    with torch.no_grad():
        assert (ours(tokens).logits - theirs(tokens).logits).abs().max() <= TOLERANCE


def test_their_folder_with_stacked_experts_opens_here(tmp_path):
    theirs = their_own(v3(), tmp_path / "config")
    theirs.save_pretrained(tmp_path / "model", save_original_format=False)
    ours = load_model(tmp_path / "model")
    tokens = tokens_of(v3(), (2, 70))
    with torch.no_grad():
        assert (ours(tokens).logits - theirs(tokens).logits).abs().max() <= TOLERANCE


def test_shards_and_bf16_open_in_transformers(tmp_path):
    config = v3(num_nextn_predict_layers=1)
    save_model(network(config), tmp_path, max_shard_bytes=50_000, dtype=torch.bfloat16)
    ours = load_model(tmp_path)
    assert_same_network(ours, theirs_from(tmp_path))
    auto = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert auto.dtype == torch.bfloat16, "config.json names the dtype it was saved in"
    gate = auto.model.layers[1].mlp.gate
    assert gate.e_score_correction_bias.dtype == torch.float32
    settings = auto.generation_config
    assert (settings.temperature, settings.top_p, settings.do_sample) == (0.6, 0.95, True)
