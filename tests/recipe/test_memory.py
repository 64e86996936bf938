"""The memory of a stage by part, held to what networks have and to what processes take; and what does not fit."""

import re
import subprocess
import sys

import pytest

from ziphius.cost.shape import shape_of
from ziphius.model.transformer import Transformer
from ziphius.recipe.fitting import refuse_too_large
from ziphius.recipe.low_rank import lora_matrices
from ziphius.recipe.memory import lora_parameters, stage_memory
from ziphius.recipe.plan import memory_by_stage, network
from ziphius.recipe.schema import RecipeError, check_recipe, load_recipe
from ziphius.train.lora import LoRA
from ziphius.train.settings import LoRASettings

from ..train.test_lora import KINDS
from ..train.test_lora import network as small

MEASURE = """
import sys
from ziphius.recipe import run
from ziphius.recipe.plan import network
from ziphius.recipe.schema import load_recipe
from ziphius.train.place import Place
from ziphius.train.trial import trial
recipe = load_recipe(sys.argv[1])
stage = recipe.stages["pretrain"]
with trial(network(recipe), stage.train, stage.micro_rows, stage.seq_len, Place()) as trainer:
    trainer.step(), trainer.step(), trainer.step()
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")][0])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_a_process_takes_what_the_plan_says():
    """Steps of the pretraining of recipes/r1-cpu.toml. bench/memory.py holds whole stages to 15%; steps alone lack the
    0.07 GiB of a stage's data and logs."""
    planned = memory_by_stage(load_recipe("recipes/r1-cpu.toml"))["pretrain"].total
    command = [sys.executable, "-c", MEASURE, "recipes/r1-cpu.toml"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert planned == pytest.approx(int(done.stdout) / 2**20 + 0.07, rel=0.15)


@pytest.mark.parametrize("settings", [{}, {"experts": True}, {"targets": ["o_proj"], "rank": 3}])
@pytest.mark.parametrize("kind", KINDS)
def test_low_ranks_are_counted_exactly(kind, settings):
    settings, model = LoRASettings(**settings), small(kind)
    shape = shape_of(model.config)
    lora = LoRA(model, settings, seed=0)
    assert lora_parameters(shape, settings) == sum(p.numel() for u in lora.updates.values() for p in u.parameters())


@pytest.mark.parametrize("experts", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_targets_are_known_before_anything_runs(kind, experts):
    """By name, from the shape alone: those that the network itself finds."""
    model = small(kind)
    updates = LoRA(model, LoRASettings(experts=experts), seed=0).updates
    assert set(lora_matrices(shape_of(model.config), experts)) == {name.rpartition("/")[2] for name in updates}


def test_an_unknown_target_is_refused(recipe):
    with pytest.raises(RecipeError, match=r"stages.rl.train.lora.targets: this network has no matrix called 'x'; it"):
        load_recipe(recipe, ["rl.train.lora.targets=['o_proj', 'x']"])


def test_weights_gradients_and_moments(recipe):
    """fp32: 4, 4 and 8 bytes a weight; BF16 adds a copy of 2 and its gradient for all but embedding, head and gates."""
    checked = load_recipe(recipe, ["pretrain.train.precision='fp32'"])
    count = sum(p.numel() for p in Transformer(network(checked)).parameters())
    parts = memory_by_stage(checked)["pretrain"].parts
    assert [parts[name] * 2**30 / count for name in ("weights", "gradients", "moments")] == pytest.approx([4, 4, 8])
    low = memory_by_stage(load_recipe(recipe))["pretrain"].parts
    assert 4 < low["weights"] * 2**30 / count < 6
    assert low["activations"] < parts["activations"]


def test_recomputation_and_smaller_micro_batches_take_less(recipe):
    def activations(*overrides):
        return memory_by_stage(load_recipe(recipe, list(overrides)))["cold_start"].parts["activations"]

    whole, some, none = (activations(f"cold_start.train.recompute='{kind}'") for kind in ("none", "selective", "full"))
    assert whole > some > none
    assert activations("cold_start.micro_rows=1") == pytest.approx(whole / 4)


def test_a_reference_and_a_rollout_cache(recipe):
    parts = memory_by_stage(load_recipe(recipe))["rl"].parts
    assert parts["reference"] * 4 == pytest.approx(parts["moments"] * 2)  # a network in fp32
    assert parts["rollout cache"] > 0
    without = load_recipe(recipe, ["rl.grpo.policy.kl_weight=0.0"])
    assert "reference" not in memory_by_stage(without)["rl"].parts
    low = memory_by_stage(load_recipe(recipe, ["rl.train.lora.rank=2"]))["rl"].parts
    assert {"frozen weights", "merged weights"} <= low.keys()
    assert "reference" not in low


def test_what_does_not_fit_is_refused_with_what_would():
    raw = {"family": "chain_sum", "settings": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}}
    stages = {
        "t": {"kind": "tokenizer", "vocab_size": 32768},
        "p": {"kind": "pretrain", "train": {"steps": 1}},
        "sft": {"kind": "sft", "task": "s", "seq_len": 1024, "rows": 64, "micro_rows": 64},
    }
    recipe = {
        "name": "r",
        "tasks": {"s": raw},
        "corpora": {"c": {"task": "s"}},
        "model": {"depth": 16},
        "stages": stages,
    }
    made = check_recipe(recipe, "here")
    need = stage_memory(made, made.stages["sft"], network(made))
    refuse_too_large(made, "sft", 1, free=need.total)
    with pytest.raises(
        RecipeError, match=r"sft needs about .* GiB \(activations .*\), and there are .*; with --set "
    ) as e:
        refuse_too_large(made, "sft", 1, free=need.total / 2)
    changes = re.findall(r"--set (\S+)", str(e.value))
    assert changes == ["sft.micro_rows=1"]
    with pytest.raises(RecipeError, match=r"with .*micro_rows=1 .*recompute='full' .*lora.rank=16 it needs"):
        refuse_too_large(made, "sft", 1, free=2.0)
    with pytest.raises(RecipeError, match=r"use fewer processes"):
        refuse_too_large(made, "sft", 4, free=0.1)
    with pytest.raises(RecipeError, match=r"even with .*: use a machine with more memory, or a smaller"):
        refuse_too_large(made, "sft", 1, free=0.1)
