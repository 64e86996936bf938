"""Training that goes wrong ends with the reason, not with code 0: through the command, over two processes."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from ziphius.checkpoint import CheckpointError
from ziphius.disk.checksum import crc32_of
from ziphius.ledger.folder import read_json, write_json
from ziphius.recipe.run import run_recipe
from ziphius.recipe.schema import load_recipe
from ziphius.recipe.screen import show_summary
from ziphius.recipe.stages import SFTStage, _what_binds
from ziphius.train.metrics import read_metrics

from .conftest import read

WRONG = ["pretrain.train.optimizer.lr=1", "pretrain.train.steps=60", "pretrain.train.save_every=8"]
WRONG += ["pretrain.train.gate_every=59", "machine.processes=2"]
REASON = (
    r"ziphius: pretrain diverged by step (\d+) of 60 at lr 1: the loss is [\d.]+ over the last 20 updates and a blind "
    r"guess costs 5\.8; lower this stage's train\.optimizer\.lr from 1 or set train\.precision to 'fp32'; the state of "
    r"step (\d+) is kept"
)


def test_a_rate_far_too_high_ends_the_run_with_the_reason(recipe, start, ziphius, tmp_path):
    run = tmp_path / "run"
    command = ["run", recipe, "--out", run, *(part for wrong in WRONG for part in ("--set", wrong))]
    ends = []
    for _ in range(2):  # the second goes on from the saved state, to the same place
        process = start(*command)
        _, said = process.communicate(timeout=120)
        assert process.returncode == 1, said
        ends.append(re.search(REASON, said))
        assert said.count("diverged") == 1
    assert ends[0]
    assert ends[0].group() == ends[1].group()
    (stage,) = run.glob("stages/02-pretrain*")
    assert not (stage / "config.json").exists()
    assert len(read_metrics(stage)) == int(ends[0].group(1)) > int(ends[0].group(2)) > 0
    code, out, _ = ziphius("doctor", run)
    assert (code, "02-pretrain: ill: 1 illness, 0 warning(s)" in out) == (0, True)
    assert "--set pretrain.train.optimizer.lr=0.5" in out


@pytest.fixture
def run(recipe, tmp_path):
    """A run up to its base model."""
    torch.set_num_threads(1)
    run_recipe(load_recipe(recipe), tmp_path / "run", until="pretrain")
    return tmp_path / "run"


def test_a_base_with_a_weight_that_is_no_number_is_refused(recipe, run):
    weights = run / "stages" / "02-pretrain" / "model.safetensors"
    stored = load_file(weights)
    stored["model.norm.weight"][3] = float("nan")
    save_file(stored, weights)
    done = weights.with_name("stage.json")  # such weights as a stage of an earlier version could have written
    write_json(done, read_json(done) | {"weights": {weights.name: crc32_of(weights)}})
    with pytest.raises(CheckpointError, match=r"model\.safetensors: model\.norm\.weight has 1 of 32 values that are"):
        run_recipe(load_recipe(recipe), run, until="cold_start")
    assert not list(run.glob("stages/03-cold_start*/config.json"))


def test_samples_and_prompts_without_room_are_found_before_any_training(recipe, tmp_path):
    for override, said in (
        ("cold_start.seq_len=30", r"\d\d of 24 samples are longer than stages.cold_start.seq_len = 30 tokens"),
        (
            "rl.grpo.max_new_tokens=245",
            r"stages.rl.grpo.max_new_tokens is 245 and prompts of tasks.sums take up to \d\d",
        ),
    ):
        with pytest.raises(ValueError, match=said):
            run_recipe(load_recipe(recipe, [override]), tmp_path / override)
        assert not list((tmp_path / override).glob("stages/*/metrics.jsonl"))


def test_skips_stand_under_the_summary(recipe, run, capsys):
    run_recipe(load_recipe(recipe), run)
    capsys.readouterr()
    show_summary(run)
    assert "skipped" not in capsys.readouterr().out
    path = next(run.glob("stages/03-cold_start*/ledger.jsonl"), None)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["skipped"] = 2
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    show_summary(run)
    assert f"cold_start: 2 of {rows[0]['steps']} updates were skipped, as spikes or not" in capsys.readouterr().out
    assert read(run / "summary.json")["name"] == "mini"


@pytest.mark.parametrize(
    ("epochs", "steps", "said"),
    [
        (4, 400, "400 steps asked for; 4 epochs of 18 steps end it after 72"),
        (1, None, "1 epoch of 18 steps: 18 in all"),
        (4, 72, "4 epochs of 18 steps: 72 in all"),
        (4, 27, "4 epochs of 18 steps asked for; 27 steps end it after 1.5 epochs"),
    ],
)
def test_what_ends_a_stage_of_imitation(epochs, steps, said):
    stage = SFTStage(kind="sft", task="sums", epochs=epochs, train={"steps": steps})
    assert _what_binds(stage, 18, stage.train.within(epochs * 18).steps) == said
