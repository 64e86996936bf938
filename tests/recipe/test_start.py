"""A recipe that begins from a folder: of any family, tuned, trained further, and found again by what it depends on."""

import json
import shutil

import pytest
import torch

from ziphius.checkpoint import load_config, load_model, save_model
from ziphius.ledger.folder import present_stages
from ziphius.model.families import FAMILIES
from ziphius.model.transformer import Transformer
from ziphius.recipe.run import run_recipe
from ziphius.recipe.schema import RecipeError, check_recipe
from ziphius.text.learn import train_tokenizer
from ziphius.text.tokenizer import Tokenizer
from ziphius.text.tokens import EOS

from .conftest import read

SHAPE = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "tie_word_embeddings": True,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
SUMS = {"family": "chain_sum", "settings": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}}
SFT = {"kind": "sft", "task": "sums", "examples": 8, "epochs": 1, "seq_len": 96, "rows": 4, "train": {"steps": 2}}
GRPO = {
    "kind": "grpo",
    "tasks": {"sums": 1.0},
    "grpo": {"group_size": 2, "prompts_per_step": 2, "max_new_tokens": 6, "policy": {"kl_weight": 0.01}},
    "train": {"steps": 1},
}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["What is 3 + 4? 12 + 7 = 19", "1 + 2 = 3"], 300)


@pytest.fixture(scope="module")
def folder_of(tokenizer, tmp_path_factory):
    """`folder_of(model_type)`: a random network of that family with a tokenizer, its weights in BF16."""
    made = {}

    def make(family):
        if family not in made:
            folder = tmp_path_factory.mktemp(family) / "model"
            shape = SHAPE | {"vocab_size": tokenizer.vocab_size} | (EXPERTS if family == "qwen3_moe" else {})
            model = Transformer(FAMILIES[family](model_type=family, **shape))
            model.init_weights(torch.Generator().manual_seed(1))
            save_model(model, folder, dtype=torch.bfloat16, generation_config={"temperature": 0.7, "do_sample": True})
            tokenizer.save(folder)
            made[family] = folder
        return made[family]

    return make


@pytest.fixture
def model(folder_of, tmp_path):
    """A folder of this test's own."""
    return shutil.copytree(folder_of("llama"), tmp_path / "model")


def recipe(folder, stages, **more):
    raw = {"name": "tuned", "model": {"from": str(folder)}, "tasks": {"sums": SUMS}, "stages": stages}
    return check_recipe(raw | {"machine": {"processes": 1}} | more, "here")


def weights(folder):
    return load_model(folder).state_dict()


# --- what runs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3_moe"])
def test_tuned(folder_of, family, tmp_path):
    """SFT and GRPO from a folder: its shape, format, tokenizer and sampling settings are the result's."""
    start = folder_of(family)
    asked = {"tasks": ["sums"], "n": 2, "samples": 1, "max_new_tokens": 6}
    summary = run_recipe(recipe(start, {"sft": SFT, "rl": GRPO}, evaluation=asked), tmp_path / "run")
    assert [stage["name"] for stage in summary["stages"] if stage["kind"] in ("sft", "grpo")] == ["sft", "rl"]
    assert summary["start"] == {"folder": str(start), "model_type": family}
    sft, rl = present_stages(tmp_path / "run")
    assert load_config(rl) == load_config(start)
    assert read(rl / "config.json")["torch_dtype"] == "bfloat16"
    assert read(rl / "generation_config.json") == read(start / "generation_config.json")
    assert Tokenizer.load(rl).digest == Tokenizer.load(start).digest
    before, after = weights(start), weights(sft)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert str(start) in (tmp_path / "run" / "report.html").read_text()


def test_chats_that_think_open_the_thinking_of_what_is_trained(model, tokenizer, tmp_path, capfd):
    """Where neither the start's tokens nor its chat template know of thinking; not where the chats do not think."""
    text = tokenizer.inner.to_str()
    for mark in ("<think>", "</think>"):
        text = text.replace(f'"{mark}"', f'"{mark[:-1]}er>"')
    turns = "{% for m in messages %}[{{ m.role[0] }}]{{ m.content }}" + EOS + "{% endfor %}"
    plain = Tokenizer(type(tokenizer.inner).from_str(text), turns + "{% if add_generation_prompt %}[a]{% endif %}")
    plain.save(model)
    asked = [{"role": "user", "content": "q"}]
    for thought, opens in (("<think>3 + 4</think>", "<think>\n"), ("", "")):
        (tmp_path / "chats.jsonl").write_text(json.dumps({"prompt": "q", "response": f"{thought}7"}) + "\n")
        stage = {key: value for key, value in SFT.items() if key not in ("task", "examples")}
        run = tmp_path / f"run{opens.strip()}"
        run_recipe(recipe(model, {"sft": stage | {"path": str(tmp_path / "chats.jsonl")}}), run)
        (made,) = present_stages(run)
        assert Tokenizer.load(made).render(asked) == plain.render(asked) + opens
        assert ("opens <think> in it" in capfd.readouterr().err) is bool(opens)


def test_a_new_network_takes_nothing_from_where_the_run_is_started(tmp_path, monkeypatch):
    """Such as the sampling settings of a model in whose folder somebody stands."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.123}')
    stages = {
        "words": {"kind": "tokenizer", "vocab_size": 300, "documents": 20},
        "base": {"kind": "pretrain", "seq_len": 32, "rows": 2, "train": {"steps": 1}},
    }
    raw = {"name": "new", "model": {"depth": 2}, "tasks": {"sums": SUMS}, "corpora": {"c": {"task": "sums"}}}
    run_recipe(check_recipe(raw | {"stages": stages, "machine": {"processes": 1}}, "here"), tmp_path / "run")
    assert read(present_stages(tmp_path / "run")[-1] / "generation_config.json")["temperature"] != 0.123


def test_pretraining_goes_on_with_a_longer_context(folder_of, tmp_path):
    start = folder_of("llama")
    stages = {"more": {"kind": "pretrain", "seq_len": 160, "rows": 2, "train": {"steps": 1, "precision": "fp32"}}}
    model = {"from": str(start), "dtype": "fp32", "overrides": {"max_position_embeddings": 256, "rope_theta": 5e5}}
    run_recipe(recipe(start, stages, model=model, corpora={"lessons": {"task": "sums"}}), tmp_path / "run")
    [more] = present_stages(tmp_path / "run")
    config = load_config(more)
    assert (config.max_position_embeddings, config.rope_theta, config.stored) == (256, 5e5, "fp32")
    before, after = weights(start), weights(more)
    far = max(float((after[name] - before[name]).abs().max()) for name in before)
    assert 0 < far < 0.02  # one small step away, not a new beginning


def test_a_stage_names_what_it_begins_from(folder_of, tmp_path):
    """`from` leads back to the start or to an earlier stage; the control goes the same ways."""
    start = folder_of("llama")
    stages = {"first": SFT, "back": SFT | {"from": "start"}, "on": SFT | {"from": "first", "thorough": 0.5}}
    made = recipe(start, stages)
    assert made.inputs() == {"first": "start", "back": "start", "on": "first"}
    run_recipe(made, tmp_path / "run", control=True)
    for part in ("", "control"):
        first, back, on = (weights(stage) for stage in present_stages(tmp_path / "run" / part))
        assert all(torch.equal(first[name], back[name]) for name in first)  # the same work from the same place
        assert any(not torch.equal(first[name], on[name]) for name in first)
    straight = present_stages(tmp_path / "run")[0]
    assert any(not torch.equal(weights(straight)[name], first[name]) for name in first)


def test_a_later_stage_that_changes_the_template_changes_what_is_trained_before_it(model, tmp_path, capsys):
    """Chats are imitated in the folder's own template, until a stage that teaches thinking comes behind them."""
    about = read(model / "tokenizer_config.json")
    plain = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"
    (model / "tokenizer_config.json").write_text(json.dumps(about | {"chat_template": plain}))
    words = model / "tokenizer.json"
    words.write_text(words.read_text().replace("think>", "other>"))  # no tokens for it either
    chats = tmp_path / "chats.jsonl"
    chats.write_text(json.dumps({"prompt": "1 + 2 =", "completion": "3"}) + "\n")
    stages = {"chats": {"kind": "sft", "path": str(chats), "seq_len": 96, "train": {"steps": 1}}}
    for now in (stages, stages | {"rl": GRPO}):
        run_recipe(recipe(model, now), tmp_path / "run", until="chats")
    assert "done before" not in capsys.readouterr().err
    assert len(list((tmp_path / "run" / "stages").iterdir())) == 2
    templates = {
        read(path / "tokenizer_config.json")["chat_template"] for path in (tmp_path / "run" / "stages").iterdir()
    }
    assert len(templates) == 2


def test_a_run_is_a_folder_to_begin_from(folder_of, tmp_path):
    """Its last trained stage is taken."""
    run_recipe(recipe(folder_of("llama"), {"sft": SFT}), tmp_path / "one")
    made = recipe(tmp_path / "one", {"sft": SFT})
    assert made.model.start() == tmp_path / "one" / "stages" / "01-sft"
    run_recipe(made, tmp_path / "two")
    [first], [second] = (present_stages(tmp_path / run) for run in ("one", "two"))
    assert any(not torch.equal(weights(first)[name], weights(second)[name]) for name in weights(first))


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_tuned_by_low_ranks(folder_of, family, tmp_path):
    """Each stage leaves an adapter of the start, which loads as a whole model; the second goes on from the first."""
    start = folder_of(family)
    sft = SFT | {"train": {"steps": 2, "lora": {"rank": 2, "experts": True}, "optimizer": {"lr": 1e-2}}}
    rl = GRPO | {"train": {"steps": 1, "lora": {"rank": 3, "targets": ["q_proj"]}}}
    asked = {"tasks": ["sums"], "n": 2, "samples": 1, "max_new_tokens": 6}
    run_recipe(recipe(start, {"sft": sft, "rl": rl}, evaluation=asked), tmp_path / "run")
    first, second = present_stages(tmp_path / "run")
    for stage in (first, second):
        assert not (stage / "model.safetensors").exists()
        assert read(stage / "adapter_config.json")["base_model_name_or_path"] == str(start)
        assert len(read(stage / "evaluation.json")["results"]) == 1
        assert "adapter_model.safetensors" in read(stage / "stage.json")["weights"]
    before, after = weights(start), weights(first)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("experts" in name for name in changed) == (family == "qwen3_moe")
    assert not any("norm" in name or "embed" in name for name in changed)
    ranks = read(second / "adapter_config.json")
    assert {ranks["r"], *ranks["rank_pattern"].values()} == {2, 5}
    assert Tokenizer.load(second).digest == Tokenizer.load(start).digest
    made = recipe(tmp_path / "run", {"sft": SFT})  # an adapter is a start like any other
    assert made.model.start() == second
    assert start / "model.safetensors" in made.model.start_files()


# --- found again -----------------------------------------------------------------------------------------------------


def test_a_start_counts_by_what_is_in_it(model, tmp_path, capfd, monkeypatch):
    run, stages = tmp_path / "run", {"sft": SFT}
    run_recipe(recipe(model, stages), run)
    moved = model.rename(tmp_path / "elsewhere")
    capfd.readouterr()
    run_recipe(recipe(moved, stages), run)
    assert "sft: done before" in capfd.readouterr().err

    monkeypatch.setattr("ziphius.recipe.digests.file_digest", None)  # what has not changed is not read again
    run_recipe(recipe(moved, stages), run)
    monkeypatch.undo()

    changed = load_model(moved)
    with torch.no_grad():
        changed.model.norm.weight.add_(0.5)
    save_model(changed, moved, dtype=torch.bfloat16)
    capfd.readouterr()
    run_recipe(recipe(moved, stages), run)
    assert "sft: what it is built on changed; begins in 01-sft-" in capfd.readouterr().err


def test_a_start_that_is_gone_or_no_model(model, tmp_path):
    shutil.move(model / "model.safetensors", tmp_path / "aside")
    with pytest.raises(ValueError, match=r"model.from: .* holds no weights .*; give a whole model's folder"):
        run_recipe(recipe(model, {"sft": SFT}), tmp_path / "run")
    (model / "config.json").unlink()
    with pytest.raises(RecipeError, match=r"here: model: from: .* holds no config.json; give the folder of a model"):
        recipe(model, {"sft": SFT})
    shutil.rmtree(model)
    with pytest.raises(RecipeError, match=r"here: model: from: .* is not there; put the folder back, or name another"):
        recipe(model, {"sft": SFT})


# --- what is refused -------------------------------------------------------------------------------------------------

TOKENIZER = {"kind": "tokenizer", "vocab_size": 320}
PRETRAIN = {"kind": "pretrain", "train": {"steps": 1}}
LESSONS = {"lessons": {"task": "sums"}}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"model": {"overrides": {"hidden_size": 64}}}, "overrides.hidden_size: the weights of a folder fit the shape"),
        ({"model": {"depth": 2}}, "give one of depth"),
        ({"stages": {"t": TOKENIZER, "sft": SFT}, "corpora": LESSONS}, "model.from brings its own tokenizer"),
        ({"stages": {}}, "stages is empty"),
        ({"stages": {"sft": SFT, "p": PRETRAIN}, "corpora": LESSONS}, "must be the first and only one"),
        ({"stages": {"p": PRETRAIN}}, "corpora is empty"),
        ({"corpora": LESSONS}, "corpora names text that no stage reads"),
        ({"stages": {"start": SFT}}, "this name stands for the folder of model.from"),
        ({"stages": {"sft": SFT | {"from": "rl"}, "rl": GRPO}}, "stages.sft.from is 'rl'; it can be start"),
        ({"stages": {"sft": SFT | {"seq_len": 200}}}, "the model reaches 128 tokens"),
        (
            {"stages": {"rl": GRPO | {"train": {"steps": 500, "lora": {}}}}},
            r"grpo.reference_refresh \(400\) renews the KL reference before the 500 steps are over",
        ),
    ],
)
def test_refusals(folder_of, more, message):
    raw = {"name": "r", "model": {"from": str(folder_of("llama"))}, "tasks": {"sums": SUMS}, "stages": {"sft": SFT}}
    model = raw["model"] | more.get("model", {})
    with pytest.raises(RecipeError, match=message):
        check_recipe(raw | more | {"model": model}, "here")


def test_only_a_folder_has_a_format_and_a_start():
    base = {"name": "r", "corpora": LESSONS, "tasks": {"sums": SUMS}}
    stages = {"t": TOKENIZER, "p": PRETRAIN, "sft": SFT}
    with pytest.raises(RecipeError, match=r"dtype is for a model that is taken from a folder"):
        check_recipe(base | {"model": {"depth": 2, "dtype": "bf16"}, "stages": stages}, "here")
    stages["sft"] = SFT | {"from": "start"}
    with pytest.raises(RecipeError, match=r"stages.sft.from is 'start'; it can be p"):
        check_recipe(base | {"model": {"depth": 2}, "stages": stages}, "here")


def test_the_resolved_recipe_is_a_recipe(folder_of):
    """What `--dry-run` prints and run folders hold says `from` as people write it, and reads back the same."""
    made = recipe(folder_of("llama"), {"sft": SFT | {"from": "start"}})
    resolved = json.loads(json.dumps(made.model_dump(mode="json")))
    assert (resolved["model"]["from"], resolved["stages"]["sft"]["from"]) == (str(folder_of("llama")), "start")
    assert check_recipe(resolved, "again") == made
