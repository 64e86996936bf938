"""`ziphius plan budget`: the file it writes, the probe of this machine, refusals."""

import json
import tomllib

import pytest

from ziphius.cost.flops import train_flops_per_token
from ziphius.recipe.budget import BudgetOptions, run_budget
from ziphius.recipe.plan import plan_stages
from ziphius.recipe.schema import load_recipe


def test_the_recipe_runs_dry(ziphius, tmp_path):
    path = tmp_path / "b.toml"
    code, out, _ = ziphius("plan", "budget", "--dollars", 20, "--gpu", "h100", "--out", path, "--json")
    assert code == 0
    chosen = next(c for c in json.loads(out)["choices"] if c["choice"] == "chosen")
    recipe = load_recipe(path)
    assert recipe.model.depth == chosen["depth"]
    assert recipe.stages["tokenizer"].vocab_size == chosen["config"]["vocab_size"]
    pretrain = recipe.stages["pretrain"]
    assert (pretrain.rows, pretrain.train.steps) == (chosen["rows"], chosen["steps"])
    assert (recipe.machine.device, pretrain.train.precision) == ("cuda", "bf16")
    assert pretrain.rows % recipe.machine.processes == 0  # one process a GPU, each with as many rows
    code, out, said = ziphius("run", path, "--dry-run")
    assert code == 0, said
    assert "Plan of budget-20-h100 (training at" in " ".join(out.split())


def test_processors_of_the_tables_are_no_gpus(ziphius, tmp_path):
    path = tmp_path / "b.toml"
    assert ziphius("plan", "budget", "--dollars", 5, "--gpu", "epyc-9755", "--rate", 3, "--out", path)[0] == 0
    assert (load_recipe(path).machine.device, load_recipe(path).machine.processes) == ("cpu", 0)


def test_the_plan_of_the_recipe_spends_the_money(ziphius, tmp_path):
    path = tmp_path / "b.toml"
    ziphius("plan", "budget", "--dollars", 20, "--gpu", "h100", "--hours", 3, "--out", path)
    recipe = load_recipe(path)
    spent = sum(stage.seconds for stage in plan_stages(recipe)) / 3600 * recipe.price.dollars_per_hour
    devices = recipe.machine.processes
    assert spent == pytest.approx(3 * 3.62 * devices, rel=0.02)
    assert 10 < spent <= 20


def test_the_cpu_is_measured_twice(tmp_path, capsys):
    asked = []

    def measure(config, seq_len, seconds):
        asked.append((config.num_hidden_layers, seconds))
        return 5e10 if config.num_hidden_layers <= 4 else 9e10

    options = BudgetOptions(1.0, "cpu", rate=0.09, seq=256, out=tmp_path / "cpu.toml")
    run_budget(options, as_json=True, measure=measure)
    found = json.loads(capsys.readouterr().out)
    assert [seconds for _, seconds in asked] == [3.0, 7.0]
    assert asked[0][0] == 4
    chosen = next(c for c in found["choices"] if c["choice"] == "chosen")
    assert chosen["depth"] >= 4
    assert "50.0 GFLOP/s and 90.0 GFLOP/s" in found["speed"]
    per_token = train_flops_per_token(load_recipe(tmp_path / "cpu.toml").model.config(2048), 256, mtp=True)
    assert chosen["tokens_per_second"]["point"] * per_token == pytest.approx(9e10, rel=0.2)
    assert found["dollars"]["point"] == pytest.approx(1.0)
    assert load_recipe(tmp_path / "cpu.toml").machine.device == "cpu"


def test_the_probe_measures_training():
    from ziphius.cost.budget import network
    from ziphius.train.probe import measure_alone, measure_training

    alone = measure_alone(network(2, 64), 64, 0.2)
    assert 1e7 < alone < 1e14
    assert measure_training(network(2, 64), 64, 0.2) > alone / 20  # other work may share the cores


def test_a_probe_that_fails_says_why():
    from ziphius.cost.budget import network
    from ziphius.train.probe import measure_training

    with pytest.raises(RuntimeError, match="the probe of this machine's speed failed: TypeError"):
        measure_training(network(2, 64), 64, "soon")


def test_a_recipe_without_evaluation_runs(tmp_path):
    """What a budget writes asks no questions, so nothing is to be kept out of its text."""
    from ziphius.cost.ledger import read_rows
    from ziphius.recipe.run import run_recipe

    path = tmp_path / "cent.toml"
    run_budget(BudgetOptions(0.02, "cpu", seq=64, rate=0.09, out=path), measure=lambda *_: 1e9)
    overrides = ["pretrain.train.steps=3", "pretrain.rows=2", "tokenizer.documents=50", "machine.processes=1"]
    overrides += ["pretrain.train.schedule.warmup_steps=0"]
    recipe = load_recipe(path, overrides)
    run_recipe(recipe, tmp_path / "run")
    assert [row.kind for row in read_rows(tmp_path / "run")] == ["tokenizer", "pretrain", "data", "startup"]
    assert json.loads((tmp_path / "run" / "stages" / "02-pretrain" / "data.json").read_text())["dropped"] == {}


def test_page(ziphius, tmp_path):
    page = tmp_path / "b.html"
    out = tmp_path / "b.toml"
    assert ziphius("plan", "budget", "--dollars", 20, "--gpu", "h100", "--out", out, "--html", page)[0] == 0
    text = page.read_text()
    assert text.count("data:image/svg+xml;base64,") == 1
    assert "A model for $20.00" in text


def test_own_text(tmp_path, capsys):
    text = tmp_path / "whales.txt"
    text.write_text("Whales dive.\n")
    options = BudgetOptions(20, "h100", seq=2048, corpus=[str(text)], out=tmp_path / "b.toml")
    run_budget(options)
    recipe = load_recipe(options.out)
    assert recipe.corpora["text"].files() == [str(text)]
    assert recipe.model.config(1024).max_position_embeddings == 2048
    assert not recipe.tasks
    assert tomllib.loads(options.out.read_text())["name"] == "budget-20-h100"


@pytest.mark.parametrize(("arguments", "message"), [
    (["--gpu", "h1000"], "no accelerator called 'h1000'; there are a100"),
    (["--gpu", "h100", "--corpus", "nowhere.txt"], "there is no file nowhere.txt"),
    (["--gpu", "h100", "--rate", "0"], "give --rate above 0"),
    (["--gpu", "h100", "--rate", "1e9"], "too few to learn from; give more money"),
])  # fmt: skip
def test_refusals(ziphius, tmp_path, arguments, message):
    path = tmp_path / "b.toml"
    code, out, said = ziphius("plan", "budget", "--dollars", 20, "--out", path, *arguments)
    assert (code, out) == (1, "")
    assert message in said
    assert said.count("\n") == 1
    assert not path.exists()


def test_a_file_that_exists_is_kept(ziphius, tmp_path):
    path = tmp_path / "b.toml"
    path.write_text("mine")
    code, _, said = ziphius("plan", "budget", "--dollars", 20, "--gpu", "h100", "--out", path)
    assert code == 1
    assert "exists already; name another with --out, or write over it with --force" in said
    assert path.read_text() == "mine"
    assert ziphius("plan", "budget", "--dollars", 20, "--gpu", "h100", "--out", path, "--force")[0] == 0
    assert load_recipe(path).name == "budget-20-h100"
