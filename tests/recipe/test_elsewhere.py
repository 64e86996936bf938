"""A whole recipe on a device that refuses to mix with the processor, and what another device makes of its folder."""

import io
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr
from multiprocessing import get_context

import torch

from tests.device import NAME, elsewhere
from ziphius.checkpoint.folder import load_model
from ziphius.cost.ledger import read_rows
from ziphius.recipe import run as running
from ziphius.recipe.schema import load_recipe
from ziphius.train.place import Place

from .conftest import read

SHORT = ["pretrain.train.steps=4", "pretrain.train.gate_every=2", "pretrain.probe_n=2", "cold_start.train.steps=1",
         "rl.train.steps=2", "evaluation.n=2", "evaluation.samples=1", "evaluation.max_new_tokens=4"]  # fmt: skip


def run_there(recipe, run):
    torch.set_num_threads(1)
    running._run(load_recipe(recipe, SHORT), run, None, False, time.time(), Place(device=elsewhere()))


def test_every_stage_runs_there_and_is_taken_over_here(recipe, tmp_path):
    run = tmp_path / "run"
    with ProcessPoolExecutor(1, mp_context=get_context("forkserver")) as pool:
        pool.submit(run_there, recipe, run).result()
    assert read(run / "machine.json")["device"] == NAME
    rows = [row for row in read_rows(run) if row.kind in ("pretrain", "sft", "grpo", "evaluation")]
    assert [row.name for row in rows] == ["pretrain", "cold_start", "evaluate cold_start", "rl", "evaluate rl"]
    assert {(row.device, row.devices) for row in rows} == {(NAME, 1)}
    model = load_model(run / "stages" / "04-rl")
    assert all(weight.isfinite().all() for weight in model.parameters())
    said = io.StringIO()
    with redirect_stderr(said):
        running._run(load_recipe(recipe, SHORT), run, None, False, time.time(), Place())
    lines = said.getvalue().splitlines()
    assert lines[0].startswith("run: begun on ")
    assert lines[0].endswith(" with 1 processes, goes on on cpu with 1")
    assert [line.partition(":")[0] for line in lines[1:]] == ["tokenizer", "pretrain", "cold_start", "rl"]
    assert all("done before" in line for line in lines[1:])
