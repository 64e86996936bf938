"""A newcomer's path by the commands alone: own text, own chats, own sums; a run, an evaluation, a question."""

import json
import os
import random
import subprocess
import sys

import pytest

RECIPE = """
name = "mine"

[model]
depth = 2
overrides = { max_position_embeddings = 256 }

[tasks.sums]
family = "math"
settings = { path = "sums.jsonl" }

[corpora.books]
path = "books/*.txt"
documents = "paragraph"

[stages.tokenizer]
kind = "tokenizer"
vocab_size = 400

[stages.pretrain]
kind = "pretrain"
seq_len = 64
rows = 8
train = { steps = 30 }

[stages.chats]
kind = "sft"
path = "chats.jsonl"
rows = 4
train = { steps = 20 }

[stages.rl]
kind = "grpo"
tasks = { sums = 1.0 }
grpo = { group_size = 4, prompts_per_step = 4, max_new_tokens = 16 }
train = { steps = 3 }

[evaluation]
tasks = ["sums"]
n = 6
samples = 2
max_new_tokens = 16

[machine]
processes = 1
"""


def command(folder, *arguments):
    """`ziphius ARGUMENTS` in `folder` → its output; fails with what it said."""
    program = "from ziphius.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        cwd=folder, capture_output=True, text=True, timeout=300, env=os.environ | {"COLUMNS": "200"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What a newcomer has: a folder with books, chats and sums, and a recipe."""
    home, rng = tmp_path_factory.mktemp("home"), random.Random(0)
    (home / "books").mkdir()
    for number, animal in enumerate(("whale", "seal", "tern")):
        lines = [f"The {animal} dives {rng.randint(1, 99)} metres, and {animal}s breathe again." for _ in range(80)]
        (home / "books" / f"{number}.txt").write_text("\n\n".join(lines))
    sums = [(a, b) for a in range(1, 10) for b in range(1, 10)]
    chats = [{"prompt": f"{a} + {b} = ?", "response": f"<think>\n{a} and {b}\n</think>\n\n{a + b}"} for a, b in sums]
    (home / "chats.jsonl").write_text("\n".join(map(json.dumps, chats)))
    asked = [{"question": f"{a} + {b} = ?", "answer": str(a + b)} for a, b in sums]
    (home / "sums.jsonl").write_text("\n".join(map(json.dumps, asked)))
    (home / "mine.toml").write_text(RECIPE)
    return home


@pytest.fixture(scope="module")
def run(folder):
    return command(folder, "run", "mine.toml")


def read(folder, *names):
    return json.loads(folder.joinpath("runs", "mine-seed0", "stages", *names).read_text())


def test_the_run_says_what_it_read(folder, run):
    out, said = run
    assert "pass@1" in out
    assert "Traceback" not in said
    data = read(folder, "02-pretrain", "data.json")
    assert data["documents"]["books"] > 200
    assert data["epochs"]["books"] > 0.9
    assert f"read books {data['epochs']['books']:.2g} times" in said
    assert read(folder, "01-tokenizer", "data.json")["documents"] == 240
    sft = read(folder, "03-chats", "data.json")
    assert 0 < sft["contaminated"] < 20  # the evaluation asks some of these very sums
    assert sft["samples"] == 81 - sft["contaminated"]
    assert f"of 81 conversations {sft['contaminated']} that hold a question of the evaluation are left out" in said
    assert sft["steps"] == min(20, 2 * sft["steps_per_epoch"])
    binds = f"chats: 20 steps asked for; 2 epochs of {sft['steps_per_epoch']} steps end it after {sft['steps']}"
    assert binds in said


def test_evaluation_and_chat(folder, run):
    options = ["--task", "math", "--set", "path=sums.jsonl", "--n", 4, "--samples", 2, "--max-new-tokens", 8, "--json"]
    out, _ = command(folder, "eval", "runs/mine-seed0/stages/04-rl", *options)
    assert 0 <= json.loads(out)["pass_at_1"] <= 1
    out, _ = command(folder, "chat", "runs/mine-seed0", "2 + 3 = ?", "--max-new-tokens", 12, "--seed", 0)
    assert out.strip()


def test_a_mistake_in_a_file_is_said_at_once(folder, run):
    (folder / "bad.jsonl").write_text('{"prompt": "1 + 1 = ?", "response": "2"}\n{"prompt": "2 + 2 = ?"}\n')
    program = "from ziphius.cli import main; main()"
    arguments = ["run", "mine.toml", "--out", "other", "--set", "chats.path=bad.jsonl"]
    done = subprocess.run([sys.executable, "-c", program, *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip() == (
        "ziphius: stages.chats.path: bad.jsonl:2: 'response' is missing (the file's form is prompt and response)"
    )
    assert not (folder / "other" / "stages").exists()
