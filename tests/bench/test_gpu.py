"""`make gpu`: one failure never stops the rest, nothing runs past its time, and all of it is put down."""

import json
import sys
import time
from pathlib import Path

import pytest

from bench.gpu import SHORT, Item, card_name, items, run_all, summarise
from ziphius.recipe.schema import load_recipe

ROOT = Path(__file__).parents[2]


def program(text):
    return [sys.executable, "-S", "-c", text]


def ended(process):
    """Gone, or dead and not yet buried by its parent."""
    for _ in range(100):
        try:
            if Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_fails_or_hangs_does_not_stop_the_rest(tmp_path):
    child = f"open({str(tmp_path / 'child')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    hanging = f"import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', {'import os, time; ' + child!r}])"
    owed = [
        Item("breaks", program("print('so far'); raise SystemExit('no card')"), 20),
        Item("hangs", program(hanging), 1.2),
        Item("missing", [str(tmp_path / "nothing")], 20),
        Item("works", program("import os; print(os.environ['PYTHONPATH'])"), 20),
    ]
    began = time.monotonic()
    outcomes = run_all(owed, tmp_path / "out", minutes=1)
    assert time.monotonic() - began < 15
    assert [each["outcome"] for each in outcomes] == [
        "failed with code 1",
        "stopped after 1 s",
        f"could not be started: [Errno 2] No such file or directory: '{tmp_path / 'nothing'}'",
        "done",
    ]
    assert outcomes[0]["last_lines"] == ["so far", "no card"]
    assert outcomes[3]["last_lines"] == [str(ROOT)]
    assert ended(int((tmp_path / "child").read_text()))  # what it had started, too
    summarise(outcomes, "a card", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["items"] == outcomes
    said = (tmp_path / "out" / "summary.md").read_text()
    assert "| hangs | stopped after 1 s | " in said
    assert "no card" in said


def test_the_time_for_all_of_it_holds(tmp_path):
    outcomes = run_all([Item("late", program("print(1)"), 20)], tmp_path, minutes=0.01)
    assert outcomes[0]["outcome"] == "no time was left"


def test_the_list_fits_the_time_and_names_what_exists(tmp_path):
    owed = items("cuda", False, tmp_path, tmp_path / "run")
    assert sum(item.limit for item in owed) <= 9 * 60
    assert {"tests", "train-100M", "train-1B", "recipe", "latent_decode", "engine"} == {item.name for item in owed}
    for item in owed:
        paths = [part for part in item.command[1:] if part.endswith((".py", ".toml"))]
        assert all((ROOT / path).exists() for path in paths)
    recipe = load_recipe(ROOT / "recipes" / "r1-cpu.toml", [*SHORT, "machine.device=cuda"])
    assert (recipe.machine.device, recipe.stages["rl"].train.steps) == ("cuda", 6)


def test_without_the_card_it_says_so():
    with pytest.raises(SystemExit, match=r"bench/gpu.py: device is 'cuda:63', but torch sees \d+ GPUs here"):
        card_name("cuda:63")
