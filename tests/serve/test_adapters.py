"""Adapters of the model that is served: chosen by name, on the model's own memory."""

import pytest
import torch
from starlette.testclient import TestClient

from ziphius.checkpoint import load_model, save_model
from ziphius.checkpoint.adapted import with_adapter
from ziphius.checkpoint.adapter import Adapter, save_adapter
from ziphius.engine.settings import EngineSettings
from ziphius.model.llama.config import LlamaConfig
from ziphius.model.transformer import Transformer
from ziphius.serve.app import make_app
from ziphius.serve.launch import make_service
from ziphius.serve.wire.settings import ServeSettings, named_folders
from ziphius.train.lora import LoRA
from ziphius.train.settings import LoRASettings


@pytest.fixture(scope="module")
def folders(tokenizer, tmp_path_factory):
    """A model and two adapters of it, each with an opinion of its own."""
    home = tmp_path_factory.mktemp("adapters")
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, head_dim=8,
        num_key_value_heads=2, max_position_embeddings=64, vocab_size=tokenizer.vocab_size, initializer_range=0.2,
    )  # fmt: skip
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(0))
    save_model(model, home / "base")
    tokenizer.save(home / "base")
    for seed, name in enumerate(("one", "two")):
        lora = LoRA(load_model(home / "base"), LoRASettings(rank=4, alpha=16, targets=["q_proj", "down_proj"]), seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for update in lora.updates.values():
                update.B.normal_(0, 0.3, generator=generator)
        save_adapter(Adapter.on(home / "base", lora.factors()), config, home / name, None)
        tokenizer.save(home / name)
    return home


@pytest.fixture(scope="module")
def client(folders):
    settings = ServeSettings(name="base", adapters={name: folders / name for name in ("one", "two")})
    service = make_service(folders / "base", settings, EngineSettings(max_rows=4))
    with TestClient(make_app(service), "http://127.0.0.1:8000", client=("127.0.0.1", 5000)) as client:
        yield client


@torch.no_grad()
def greedy(model, prompt, count):
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def test_a_request_names_who_answers(client, folders):
    assert [card["id"] for card in client.get("/v1/models").json()["data"]] == ["base", "one", "two"]
    assert client.get("/v1/models/two").json()["id"] == "two"
    prompt, texts, prints = [5, 17, 40, 9], {}, set()
    for name in ("base", "one", "two"):
        asked = {"model": name, "prompt": prompt, "max_tokens": 6, "temperature": 0, "logprobs": 0}
        found = client.post("/v1/completions", json=asked).json()
        texts[name] = found["choices"][0]["logprobs"]["token_logprobs"]
        prints.add(found["system_fingerprint"])
        model = load_model(folders / name)
        tokens = greedy(model, prompt, 6)
        logits = model(torch.tensor([prompt + tokens])).logits[0].detach().log_softmax(-1)
        own = [float(logits[len(prompt) - 1 + place, token]) for place, token in enumerate(tokens)]
        assert texts[name] == pytest.approx(own[: len(texts[name])], abs=1e-3)
    assert texts["base"] != texts["one"] != texts["two"]
    assert len(prints) == 3
    refused = client.post("/v1/completions", json={"model": "three", "prompt": prompt})
    assert refused.status_code == 404
    assert "this server has 'base', 'one', 'two'" in refused.json()["error"]["message"]


def test_tensors_that_no_adapter_changes_are_shared(folders):
    model = load_model(folders / "base")
    adapted, own_bytes = with_adapter(model, folders / "base", folders / "one")
    mine = {p.data_ptr(): p for p in model.parameters()}
    own = [p for p in adapted.parameters() if p.data_ptr() not in mine]
    assert own_bytes == sum(p.nbytes for p in own) < sum(p.nbytes for p in mine.values()) / 2


def test_adapters_that_cannot_be_served(folders, tokenizer):
    model, base = load_model(folders / "base"), folders / "base"
    with pytest.raises(ValueError, match=r"is no adapter"):
        with_adapter(model, base, base)
    with pytest.raises(ValueError, match=r"is an adapter of .*base and not of .*one; serve that model"):
        with_adapter(model, folders / "one", folders / "two")
    with pytest.raises(ValueError, match=r"leave --weights int8 out, or merge one first"):
        make_service(base, ServeSettings(weights="int8", adapters={"one": folders / "one"}), EngineSettings())
    with pytest.raises(ValueError, match=r"that is the model's own name"):
        make_service(base, ServeSettings(name="one", adapters={"one": folders / "one"}), EngineSettings())
    for wrong in (["one"], ["=x"], ["a=x", "a=y"]):
        with pytest.raises(ValueError, match="write it as name=FOLDER"):
            named_folders(wrong)
