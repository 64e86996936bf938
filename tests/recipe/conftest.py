import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ziphius import cli

RECIPE = """
name = "mini"
seed = 3

[model]
depth = 2
overrides = { hidden_size = 32, n_routed_experts = 4, tie_word_embeddings = true, max_position_embeddings = 256 }

[tasks.sums]
family = "chain_sum"
settings = { min_terms = 2, max_terms = 3, min_digits = 1, max_digits = 1 }

[corpora.lessons]
task = "sums"

[stages.tokenizer]
kind = "tokenizer"
vocab_size = 320
documents = 60

[stages.pretrain]
kind = "pretrain"
seq_len = 48
rows = 4
probe = "sums"
probe_n = 4
train = { steps = 6, gate_every = 3, gate_target = 1.0, save_every = 2, schedule = { warmup_steps = 2 } }

[stages.cold_start]
kind = "sft"
task = "sums"
examples = 24
thorough = 0.5
epochs = 1
seq_len = 96
rows = 4
train = { steps = 3 }

[stages.rl]
kind = "grpo"
tasks = { sums = 1.0 }
grpo = { group_size = 2, prompts_per_step = 2, max_new_tokens = 8, policy = { kl_weight = 0.01 } }
train = { steps = 3, save_every = 1, optimizer = { lr = 1e-4 } }

[evaluation]
tasks = ["sums"]
n = 4
samples = 2
max_new_tokens = 8

[price]
dollars_per_hour = 0.36
what = "a test"

[machine]
device = "cpu"
processes = 1
"""


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def recipe(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "mini.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def ziphius(monkeypatch, capfd):
    """`ziphius("run", ...)` in this process -> (exit code, stdout, stderr)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ziphius", *map(str, arguments)])
        monkeypatch.setattr(cli, "_debug", False)
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        code = end.value.code
        return (0 if code is None else code), *capfd.readouterr()

    return call


@pytest.fixture
def start():
    """`start("run", ...)` as a process of its own."""
    calm = {"COLUMNS": "200", "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}  # idle threads leave the cores alone
    program = "from ziphius.cli import main; main()"
    return lambda *arguments: subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | calm,
    )


def read(path: Path):
    return json.loads(path.read_text())
