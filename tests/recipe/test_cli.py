import json
import resource
import subprocess
import sys

import pytest

from ziphius.recipe.plan import memory_gib, network, plan_stages
from ziphius.recipe.schema import load_recipe

# Runs a verb in a process of its own and says what it has imported.
WATCH = """
import sys
sys.argv = ["ziphius", *sys.argv[1:]]
from ziphius.cli import main
try:
    main()
finally:
    heavy = {"torch", "transformers", "tokenizers", "reasoning_gym"} & set(sys.modules)
    print("imported", *sorted(heavy), file=sys.stderr)
"""


def watch(*arguments):
    """What it said, and its seconds of the processor."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", WATCH, *map(str, arguments)], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_help_is_quick_and_light():
    watch("--help")
    best = min((watch("--help") for _ in range(2)), key=lambda pair: pair[1])
    done, seconds = best
    assert done.returncode == 0
    assert done.stderr == "imported\n"
    assert seconds < 1.5
    for verb in ("run", "eval", "chat", "doctor", "cost"):
        assert verb in done.stdout


def test_a_dry_run_needs_no_torch(recipe):
    done, _ = watch("run", recipe, "--dry-run", "--set", "rl.train.steps=5")
    assert done.returncode == 0, done.stderr
    assert "torch" not in done.stderr
    assert "transformers" not in done.stderr
    plain = " ".join(done.stdout.split())
    assert "with multi-token prediction" in plain
    assert "steps = 5" in plain
    assert "Plan of mini" in plain


def test_the_dry_run_names_the_parameters_that_the_network_has(recipe, ziphius):
    from ziphius.model.transformer import Transformer

    checked = load_recipe(recipe)
    model = Transformer(network(checked))
    count = sum(p.numel() for p in model.parameters())
    code, out, _ = ziphius("run", recipe, "--dry-run")
    assert code == 0
    assert f"Parameters: {count:,} with multi-token prediction" in " ".join(out.split())
    assert memory_gib(checked) > 6 * 4 * count / 2**31


def test_plan(recipe):
    plans = {plan.name: plan for plan in plan_stages(load_recipe(recipe))}
    assert list(plans) == ["tokenizer", "pretrain", "cold_start", "evaluate cold_start", "rl", "evaluate rl"]
    assert plans["evaluate rl"].tokens == 4 * (2 + 1) * 8
    assert plans["tokenizer"].seconds == 0
    assert plans["pretrain"].tokens == 6 * 4 * 48
    assert plans["rl"].tokens >= 3 * 2 * 2 * 8
    doubled = {plan.name: plan for plan in plan_stages(load_recipe(recipe, ["pretrain.train.steps=12"]))}
    assert doubled["pretrain"].seconds == pytest.approx(2 * plans["pretrain"].seconds)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "rl.train.stepz=3"], "stages.rl.train.stepz is no setting here"),
        (
            ["--until", "later"],
            "--until later: the recipe has no such stage; it has tokenizer, pretrain, cold_start, rl",
        ),
        (["--seed", "-1"], "seed: Input should be greater than or equal to 0 (got -1)"),
    ],
)
def test_mistakes_are_one_line(recipe, ziphius, arguments, message):
    code, out, said = ziphius("run", recipe, "--dry-run", *arguments)
    assert (code, out) == (1, "")
    assert said.startswith("ziphius: ")
    assert message in said
    assert said.count("\n") == 1


def test_a_missing_recipe_and_a_broken_one(ziphius, tmp_path):
    assert "no such recipe" in ziphius("run", tmp_path / "no.toml")[2]
    (tmp_path / "broken.toml").write_text("x = ")
    assert "not readable as TOML" in ziphius("run", tmp_path / "broken.toml")[2]


def test_mistakes_in_the_arguments(ziphius):
    for arguments in (["dive"], ["run"], ["run", "x.toml", "--deep"], ["eval", ".", "--n", "many"]):
        code, _, said = ziphius(*arguments)
        assert code == 2
        assert "Traceback" not in said
        assert said


def test_settings_of_the_seed(recipe, ziphius):
    _, out, _ = ziphius("run", recipe, "--dry-run", "--seed", 12)
    assert "seed = 12" in out
    assert json.dumps(load_recipe(recipe, seed=12).model_dump(mode="json"))
