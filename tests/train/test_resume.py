"""Runs that are stopped or killed end with the same bits as runs that are not, alone and with two processes."""

from random import Random

import pytest
import torch

from ziphius.text.tokenizer import Tokenizer
from ziphius.train import resume
from ziphius.train.metrics import read_metrics
from ziphius.train.place import Place
from ziphius.train.resume import newest_state
from ziphius.train.state import find_state

from .jobs import STEPS, Job, make

TIMES = ("seconds", "tokens_per_second", "mfu", "rollout_seconds")
KINDS = ["pretrain", "sft", "grpo"]


@pytest.fixture(scope="module")
def start(tokenizer_folder):
    return lambda kind, folder, size=1, **options: Job(kind, folder, tokenizer_folder, size, **options)


@pytest.fixture(scope="module")
def undisturbed(start, tmp_path_factory):
    """The folder of each kind and size of run, made once."""
    made = {}

    def run(kind, size):
        if (kind, size) not in made:
            folder = tmp_path_factory.mktemp(f"{kind}{size}")
            assert start(kind, folder, size).wait() == [0] * size
            made[kind, size] = folder
        return made[kind, size]

    return run


def assert_same(folder, other):
    one, two = find_state(folder / "state").state, find_state(other / "state").state
    assert one["progress"]["step"] == two["progress"]["step"] == STEPS
    assert torch.equal(one["master"], two["master"])
    assert torch.equal(one["optimizer"]["second"], two["optimizer"]["second"])
    for name, buffer in one["buffers"].items():
        assert torch.equal(buffer, two["buffers"][name])
    rows = [[{k: v for k, v in row.items() if k not in TIMES} for row in read_metrics(f)] for f in (folder, other)]
    assert rows[0] == rows[1]
    assert [row["step"] for row in rows[0]] == list(range(1, STEPS + 1))


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_random_moments(kind, size, start, undisturbed, tmp_path):
    whole = undisturbed(kind, size)
    rng, kills = Random(f"{kind}{size}"), 0
    for steps in (2, 5, STEPS - 2) if size == 1 else (2, STEPS - 2):  # a state is saved every third step
        kills += start(kind, tmp_path, size).kill(tmp_path, steps, rng.uniform(0, 0.1))
    assert start(kind, tmp_path, size).wait() == [0] * size
    assert kills
    assert_same(tmp_path, whole)


@pytest.mark.parametrize("kind", KINDS)
def test_one_rank_told_to_stop_stops_both(kind, start, undisturbed, tmp_path):
    """The signal comes in the middle of a step: both ranks finish the next one and save the same state."""
    whole = undisturbed(kind, 2)
    for stop in ((1, 3), (0, 6)):
        assert start(kind, tmp_path, 2, stop=stop).wait() == [3, 3]
        assert find_state(tmp_path / "state").state["progress"]["step"] == stop[1] + 2
    assert start(kind, tmp_path, 2).wait() == [0, 0]
    assert_same(tmp_path, whole)


def test_two_ranks_go_on_alike_from_the_state_before_a_damaged_one(start, undisturbed, tmp_path):
    """Rank 0 looks and both follow; where no state is good both end at once."""
    whole = undisturbed("pretrain", 2)
    assert start("pretrain", tmp_path, 2, stop=(0, 6)).wait() == [3, 3]
    *_, older, newer = sorted((tmp_path / "state").glob("*.pt"))
    for path in (newer, older):
        good = path.read_bytes()
        path.write_bytes(good[:-5])
    assert start("pretrain", tmp_path, 2).wait() == [1, 1]
    older.write_bytes(good)
    assert start("pretrain", tmp_path, 2).wait() == [0, 0]
    assert_same(tmp_path, whole)


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_hold_the_same_weights(kind, undisturbed):
    whole = undisturbed(kind, 2)
    assert torch.equal(torch.load(whole / "master0.pt"), torch.load(whole / "master1.pt"))


@pytest.mark.parametrize("kind", ["pretrain", "sft"])
def test_two_ranks_learn_as_one(kind, start, tmp_path):
    for size in (1, 2):
        assert start(kind, tmp_path / str(size), size, precision="fp32").wait() == [0] * size
    one, two = (read_metrics(tmp_path / str(size)) for size in (1, 2))
    assert [row["tokens"] for row in one] == [row["tokens"] for row in two]
    assert [row["loss"] for row in one] == pytest.approx([row["loss"] for row in two], rel=2e-3)
    assert [row["grad_norm"] for row in one][:3] == pytest.approx([row["grad_norm"] for row in two][:3], rel=1e-3)
    masters = [torch.load(tmp_path / str(size) / "master0.pt") for size in (1, 2)]
    assert (masters[0] - masters[1]).abs().mean() < 1e-3


def test_grpo_writes_what_a_user_looks_for(undisturbed):
    rows = read_metrics(undisturbed("grpo", 1))
    rolled = [row for row in rows if "reward" in row]
    assert [row["step"] for row in rolled] == [1, 3, 5, 7, 9]  # two updates from one set of rollouts
    for key in ("entropy", "clipped", "kl", "mismatch", "loss", "mtp_loss", "load_violation"):
        assert all(key in row for row in rows), key
    assert all(row["mismatch"] < 0.1 for row in rows)
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-3)
    assert rows[3]["kl"] > 0
    assert any(row["groups_mixed"] > 0 for row in rolled)


def test_another_processor_or_other_kernels_are_told(tokenizer_folder, undisturbed, monkeypatch, capfd):
    """What rounds otherwise is no failure, but nobody shall take the result for the same bits."""
    folder = undisturbed("pretrain", 1)
    flat = make("pretrain", folder, Tokenizer.load(tokenizer_folder), Place()).weights
    newest_state(folder, flat, Place(), "pretrain")
    assert capfd.readouterr().err == ""
    before = resume.what_rounds(Place())
    monkeypatch.setattr(resume, "what_rounds", lambda place: "an abacus")
    newest_state(folder, flat, Place(), "pretrain")
    assert capfd.readouterr().err == (
        f"pretrain: begun with {before}, goes on with an abacus: its result will be the same up to rounding\n"
    )
