"""`ziphius tune`: a recipe with defaults that suit the model and the data, its plan, and what becomes of it."""

import json

import pytest
import torch

from ziphius.checkpoint import load_model, save_model
from ziphius.ledger.folder import present_stages
from ziphius.model.families import FAMILIES
from ziphius.model.transformer import Transformer
from ziphius.recipe.run import run_recipe
from ziphius.recipe.schema import load_recipe
from ziphius.recipe.tune import learning_rate
from ziphius.text.learn import train_tokenizer


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tune") / "base"
    tokenizer = train_tokenizer(["What is 3 + 4? 12 + 7 = 19"], 300)
    config = FAMILIES["llama"](
        model_type="llama", hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        head_dim=8, num_key_value_heads=2, max_position_embeddings=128, vocab_size=tokenizer.vocab_size,
    )  # fmt: skip
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(0))
    save_model(model, folder, dtype=torch.bfloat16)
    tokenizer.save(folder)
    return folder


@pytest.fixture
def chats(tmp_path):
    path = tmp_path / "chats.jsonl"
    rows = [{"prompt": f"What is {n} + 1?", "completion": str(n + 1)} for n in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_recipe_is_written_and_its_plan_printed(ziphius, base, chats, tmp_path):
    code, out, err = ziphius("tune", base, "--data", chats, "--out", tmp_path / "run", "--epochs", 3, "--dry-run")
    assert code == 0, err
    assert "Plan of tune-base" in out
    assert f"Recipe:  {tmp_path / 'run' / 'tune.toml'}" in out
    recipe = load_recipe(tmp_path / "run" / "tune.toml")
    stage = recipe.stages["sft"]
    assert (recipe.model.from_, stage.files(), stage.epochs) == (str(base), [str(chats)], 3)
    assert (stage.train.lora, stage.seq_len % 64, stage.rows) == (None, 0, 1)
    assert stage.train.optimizer.lr == learning_rate(25e3, low_rank=False) == 1e-3


def test_low_ranks_run_and_merge(ziphius, base, chats, tmp_path):
    run, merged = tmp_path / "run", tmp_path / "merged"
    tuned = ("tune", base, "--data", chats, "--out", run, "--dry-run", "--lora")
    assert ziphius(*tuned, 4)[0] == 0
    run_recipe(load_recipe(run / "tune.toml"), run)
    [stage] = present_stages(run)
    assert (stage / "adapter_model.safetensors").exists()
    assert ziphius("merge", run, merged)[0] == 0
    adapted, whole, before = (load_model(folder).state_dict() for folder in (stage, merged, base))
    for name in before:
        torch.testing.assert_close(whole[name], adapted[name], atol=1e-2, rtol=1e-2)  # rounded to the base's BF16
    assert any(not torch.equal(whole[name], before[name]) for name in before)
    assert (merged / "tokenizer.json").read_text() == (base / "tokenizer.json").read_text()

    assert ziphius("merge", base, tmp_path / "x")[2].endswith("so there is nothing to merge\n")
    assert ziphius("merge", run, merged)[2].endswith("holds a model already; name another folder\n")
    assert ziphius(*tuned, 4)[0] == 0  # the same wish again
    assert "exists already and says otherwise" in ziphius(*tuned, 8)[2]
    assert ziphius(*tuned, 8, "--force")[0] == 0
    assert load_recipe(run / "tune.toml").stages["sft"].train.lora.rank == 8


def test_where_it_runs_is_no_part_of_the_recipe(ziphius, base, chats, tmp_path):
    """As with `ziphius run`: another device asks for no other folder."""
    tuned = ("tune", base, "--data", chats, "--out", tmp_path / "run", "--dry-run")
    assert [ziphius(*tuned, "--device", device)[0] for device in ("cpu", "cuda")] == [0, 0]
    assert "greater than 0" in ziphius(*tuned, "--lr", 0)[2]  # 0 is no way to leave it out


def test_rates_go_by_size():
    """R1's students: 1e-4 at 1.5 billion parameters, falling slowly; low ranks take ten times that."""
    assert learning_rate(1.5e9, low_rank=False) == pytest.approx(1e-4)
    assert 4e-5 < learning_rate(8e9, low_rank=False) < 8e-5
    assert learning_rate(8e9, low_rank=True) == pytest.approx(10 * learning_rate(8e9, low_rank=False))
    assert learning_rate(1e6, low_rank=True) == 2e-3


def test_data_that_cannot_be_used(ziphius, base, tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    assert "no conversation with an answer to learn from" in ziphius("tune", base, "--data", empty)[2]
    odd = tmp_path / "odd.jsonl"
    odd.write_text('{"foo": 1}\n')
    assert f"{odd}:1: the keys ['foo'] are those of no known form" in ziphius("tune", base, "--data", odd)[2]
    assert "there is no file" in ziphius("tune", base, "--data", tmp_path / "none.jsonl")[2]
    assert "is not there; put the folder back" in ziphius("tune", tmp_path / "gone", "--data", empty)[2]
