"""The verbs as people type them: text, JSON, pages, refusals, and how long they take."""

import json
import re
import resource
import subprocess
import sys
import time

import pytest

TRAIN = (
    "plan", "train", "--model", "deepseek-v3", "--gpu", "h800", "--gpus", "2048", "--tokens", "14.8T",
    "--precision", "fp8", "--parallel", "pp16,ep64,zero1", "--batch", "15360", "--schedule", "dualpipe",
    "--software", "2024-12",
)  # fmt: skip
SERVE = ("plan", "serve", "--model", "deepseek-r1", "--gpu", "h800", "--software", "2025-02")


def quantity(value):
    assert set(value) == {"point", "low", "high"}
    assert value["low"] <= value["point"] <= value["high"]
    return value["point"]


def test_train_json(verb):
    code, out, err = verb(*TRAIN, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    named = ("tokens_per_second_per_gpu", "gpu_hours", "dollars", "mfu", "memory_gib", "days", "energy_mwh")
    for name in (*named, "step_seconds"):
        assert quantity(found[name]) > 0
    assert "BF16 peak of 989 TFLOPS" in found["mfu_basis"]
    assert sum(found["memory_parts_gib"].values()) == pytest.approx(found["memory_gib"]["point"])
    assert sum(found["step_parts_seconds"].values()) == pytest.approx(found["step_seconds"]["point"])
    assert found["layout"]["dp"] == 128


def test_train_text_and_search(verb):
    code, out, _ = verb("plan", "train", "--model", "llama-3-8b", "--gpu", "h100", "--gpus", "8", "--tokens", "1T")
    assert code == 0
    plain = " ".join(out.split())
    assert "layouts priced: the best, and faster ones that do not fit" in plain
    assert "GiB too large" in plain
    assert "80% intervals" in plain


def test_phases_and_their_json(verb):
    arguments = [
        a for a in TRAIN if a not in ("--tokens", "14.8T", "--parallel", "pp16,ep64,zero1", "--batch", "15360")
    ]
    code, out, _ = verb(*arguments, "--phases", "deepseek-v3", "--json")
    assert code == 0
    found = json.loads(out)
    assert quantity(found["dollars"]) == pytest.approx(5.576e6, rel=0.1)
    assert found["phases"][0]["name"] == "pretraining"
    assert "pretraining: published" in verb(*arguments, "--phases", "deepseek-v3")[1]


def test_counts(verb):
    code, out, _ = verb("plan", "count", "--model", "deepseek-v3", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["kv_bytes_per_token"] == {"bf16": 70272, "fp8": 35136}
    assert found["parameters"]["total"] == 671_026_404_352
    assert "70,272 bytes a token" in verb("plan", "count", "--model", "deepseek-v3")[1]


def test_rl_json(verb):
    asked = ("--model", "deepseek-v3", "--gpu", "h800", "--gpus", 512, "--steps", 10400)
    code, out, _ = verb("plan", "rl", *asked, "--json")
    assert code == 0
    assert quantity(json.loads(out)["gpu_hours"]) == pytest.approx(101_000, rel=0.4)


def test_serve_json_and_text(verb):
    code, out, _ = verb(*SERVE, "--requests", 100, "--price", "deepseek-r1@2025-02-28", "--json")
    assert code == 0
    found = json.loads(out)
    for name in (
        "input_tokens_per_second_per_gpu", "output_tokens_per_second_per_gpu", "time_to_first_token_seconds",
        "dollars_per_million_hit", "dollars_per_million_miss", "dollars_per_million_output", "nodes", "dollars_per_day",
        "margin", "tokens_per_second_per_user", "fleet_output_tokens_per_second_per_node",
    ):  # fmt: skip
        assert quantity(found[name])
    assert "cost of 1M output" in verb(*SERVE)[1]


def test_accuracy_of_ones_own_rows(verb, tmp_path):
    from tests.cost.test_accuracy import OWN

    (tmp_path / "mine.toml").write_text(OWN)
    code, out, _ = verb("plan", "accuracy", "--data", tmp_path / "mine.toml", "--own", "--no-leave-out", "--json")
    assert code == 0
    assert json.loads(out)["rows"][0]["name"] == "a run of mine"


def test_pages_stand_alone(verb, tmp_path):
    train, serve = tmp_path / "train.html", tmp_path / "serve.html"
    asked = ("--model", "llama-3-8b", "--gpu", "h100", "--gpus", 8, "--tokens", "1T")
    assert verb("plan", "train", *asked, "--html", train)[0] == 0
    assert verb(*SERVE, "--html", serve)[0] == 0
    for page, pictures in ((train, 3), (serve, 2)):
        text = page.read_text()
        assert text.count("data:image/svg+xml") == pictures
        assert not re.findall(r'(?:src|href)="(?!data:)', text)
        assert "<script" not in text
    assert "Cost and time against the number of GPUs" in train.read_text()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"--gpu": "h9000"}, "no accelerator called 'h9000'; there are a100"),
        ({"--model": "gpt-9"}, "no model called 'gpt-9'"),
        ({"--parallel": "pp3,ep64"}, "2048 GPUs do not divide by pp3,ep64"),
        ({"--parallel": "xx"}, "'xx' is no axis"),
        ({"--tokens": "many"}, "--tokens many: write an amount above zero such as 14.8T"),
        ({"--precision": "int4"}, "--precision int4: it is one of bf16, fp8, fp4"),
        ({"--schedule": "gpipe"}, "--schedule gpipe: it is one of 1f1b, zb1p, dualpipe"),
        ({"--software": "soon"}, "--software soon: write a date such as 2024-12"),
        ({"--gpu": "a100"}, "a100 has no fp8 arithmetic"),
        ({"--parallel": "pp2,ep8,zero1", "--schedule": "1f1b"}, "too much"),
    ],
)
def test_mistakes_are_one_line(verb, change, says):
    arguments = list(TRAIN)
    for option, value in change.items():
        arguments[arguments.index(option) + 1] = value
    code, out, err = verb(*arguments)
    assert (code, out) == (1, "")
    assert err.startswith("ziphius: ")
    assert err.count("\n") == 1
    assert says in err


def test_other_mistakes(verb):
    assert "--tokens is missing" in verb("plan", "train", "--model", "llama-3-8b", "--gpu", "h100", "--gpus", 8)[2]
    assert "--price needs a demand" in verb(*SERVE, "--price", "deepseek-r1@2025-02-28")[2]
    assert (
        "has no prediction module"
        in verb("plan", "serve", "--model", "llama-3-8b", "--gpu", "h100", "--acceptance", 0.5)[2]
    )


WATCH = """
import sys
sys.argv = ["ziphius", *sys.argv[1:]]
from ziphius.cli import main
try:
    main()
finally:
    print(*({"torch", "transformers", "matplotlib", "numpy"} & set(sys.modules)), file=sys.stderr)
"""


@pytest.mark.parametrize("arguments", [TRAIN, (*TRAIN, "--json"), SERVE], ids=["text", "json", "serve"])
def test_a_plan_answers_in_a_blink(arguments):
    """Processor time, for other work stretches the clock: 0.35–0.5 s on a quiet machine, 0.65 s on a busy one."""
    seconds = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", WATCH, *arguments], capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.stderr == "\n"
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        if seconds[-1] < 0.9:
            return
    pytest.fail(f"each of {len(seconds)} took too long: {seconds}")


def test_the_search_is_quick(verb):
    began = time.process_time()
    code, _, _ = verb(*(a if a != "pp16,ep64,zero1" else "auto" for a in TRAIN))
    assert code == 0
    assert time.process_time() - began < 10


def test_nothing_here_imports_torch():
    """Every module of the room, imported at once."""
    code = (
        "import sys, pkgutil, importlib, ziphius.cost as room\n"
        "for found in pkgutil.walk_packages(room.__path__, 'ziphius.cost.'):\n    importlib.import_module(found.name)\n"
        "assert len([m for m in sys.modules if m.startswith('ziphius.cost.')]) > 20\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
