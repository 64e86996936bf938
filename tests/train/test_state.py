"""Saved states: damage is found and named, an older good one is taken, a kill or a full disk costs one save at most."""

import errno
import os
import signal
import subprocess
import sys
import time
from random import Random

import pytest
import torch

from ziphius.disk.errors import DiskError
from ziphius.train import state as module
from ziphius.train.resume import network_of
from ziphius.train.state import StateError, find_state, save_state
from ziphius.train.trainer import Interrupted, Trainer

from .stub import Fixed
from .test_trainer import batch_of, make

NETWORK = {"parameters": 6, "layout": "a"}


def state_at(step: int) -> dict:
    generator = torch.Generator().manual_seed(step)
    return {"progress": {"step": step, "seconds": step / 2}, "master": torch.rand(200, generator=generator)}


@pytest.fixture
def folder(tmp_path):
    """States of steps 1, 2 and 3, of which two are kept."""
    for step in (1, 2, 3):
        save_state(tmp_path, state_at(step), NETWORK)
    return tmp_path


def damage(path, how):
    content = path.read_bytes()
    if how == "a bit":
        content = content[:900] + bytes([content[900] ^ 4]) + content[901:]
    elif how == "a tail":
        content = content[:-17]
    elif how == "all":
        content = b""
    path.write_bytes(content)


def test_the_last_two_are_kept(folder):
    assert sorted(os.listdir(folder)) == [f"step-{n:08d}.{kind}" for n in (2, 3) for kind in ("json", "pt")]
    found = find_state(folder, NETWORK)
    assert found.path == folder / "step-00000003.pt"
    assert torch.equal(found.state["master"], state_at(3)["master"])
    assert found.bad == {}
    assert found.state["progress"] == {"step": 3, "seconds": 1.5}
    assert find_state(folder / "none").state is None


@pytest.mark.parametrize(
    ("how", "words"),
    [("a bit", "damaged (its checksum differs)"), ("a tail", "cut short"), ("all", "cut short (0 bytes of")],
)
def test_a_bad_state_is_named_and_the_one_before_it_taken(folder, how, words):
    damage(folder / "step-00000003.pt", how)
    found = find_state(folder, NETWORK)
    assert found.path == folder / "step-00000002.pt"
    assert torch.equal(found.state["master"], state_at(2)["master"])
    ((path, what),) = found.bad.items()
    assert path.name == "step-00000003.pt"
    assert str(path) in what
    assert words in what


def test_every_single_damaged_byte_is_found(folder):
    path = folder / "step-00000003.pt"
    content = path.read_bytes()
    for place in Random(0).sample(range(len(content)), 100):
        path.write_bytes(content[:place] + bytes([content[place] ^ (1 << place % 8)]) + content[place + 1 :])
        assert find_state(folder, NETWORK).path.name == "step-00000002.pt"


def test_a_foreign_state_is_named(folder):
    with pytest.raises(StateError) as none:
        find_state(folder, {"parameters": 7, "layout": "b"})
    assert "step-00000003.pt is of another network (parameters: 6 where this one has 7, layout: a" in str(none.value)
    assert f"remove {folder} to begin the stage anew" in str(none.value)
    assert "\n" not in str(none.value)


@pytest.mark.parametrize("content", [None, b"", b"[]", b"{}", b'{"format": 1}'])
def test_a_state_without_its_description_is_not_trusted(folder, content):
    about = folder / "step-00000003.json"
    about.unlink()
    if content is not None:
        about.write_bytes(content)
    found = find_state(folder)
    assert found.path.name == "step-00000002.pt"
    assert "step-00000003.json" in found.bad[folder / "step-00000003.pt"]
    assert found.state["progress"]["step"] == 2


def test_what_a_newer_version_wrote_is_not_guessed_at(folder, monkeypatch):
    monkeypatch.setattr(module, "_FORMAT", 2)
    with pytest.raises(StateError, match="is of format 1, and this version reads 2"):
        find_state(folder)


def test_states_of_earlier_versions_are_read(tmp_path):
    torch.save(state_at(5), tmp_path / "state.pt")
    assert torch.equal(find_state(tmp_path).state["master"], state_at(5)["master"])
    assert find_state(tmp_path).state["progress"]["step"] == 5
    damage(tmp_path / "state.pt", "a tail")
    with pytest.raises(StateError, match=r"state.pt is no state, or was cut short: no good state is left"):
        find_state(tmp_path)
    for step in (6, 7):
        save_state(tmp_path, state_at(step))
    assert not (tmp_path / "state.pt").exists()


# --- kills -----------------------------------------------------------------------------------------------------------


def test_killed_at_any_moment_a_writer_leaves_a_good_state(tmp_path):
    """Fifty kills of writers that do nothing but save: what one had saved, the next always finds."""
    reached, rng = 0, Random(0)
    for _ in range(50):
        child = os.fork()
        if child == 0:
            step = reached
            while True:
                step += 1
                save_state(tmp_path, {"progress": {"step": step}, "master": torch.full((20000,), float(step))})
        wanted = reached + rng.randrange(3)  # so many saves it may finish, and the kill comes in the next
        while max((int(path.stem[5:]) for path in tmp_path.glob("step-*.pt")), default=0) < wanted:
            time.sleep(0.0005)
        time.sleep(rng.uniform(0, 0.006))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found = find_state(tmp_path)
        assert found.bad == {}
        if found.state is not None:
            step = found.state["progress"]["step"]
            assert step >= reached
            assert found.state["master"].unique().tolist() == [step]
            reached = step
    assert reached > 20
    assert 1 <= len(list(tmp_path.glob("step-*.pt"))) <= 3


# --- a trainer's -----------------------------------------------------------------------------------------------------


def trainer_in(build, folder, steps=9, before=None) -> Trainer:
    return make(build(), Fixed([[batch_of(2, seed=n)] for n in range(9)], before), folder, steps=steps, save_every=3)


@pytest.fixture
def stopped(build, tmp_path):
    """A stage that was stopped at step 7, with states of 6 and 7."""
    ask = lambda step: step == 6 and os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Interrupted):
        trainer_in(build, tmp_path, before=ask).run()
    assert [path.name for path in sorted((tmp_path / "state").glob("*.pt"))] == ["step-00000006.pt", "step-00000007.pt"]
    return tmp_path


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    from .conftest import make_model

    trainer = trainer_in(make_model, tmp_path_factory.mktemp("whole"))
    trainer.run()
    return trainer.weights.master.clone()


def test_from_the_state_before_a_damaged_one_it_ends_with_the_same_bits(build, stopped, whole, capsys):
    state = stopped / "state"
    damage(state / "step-00000007.pt", "a bit")
    trainer = trainer_in(build, stopped)
    trainer.run()
    assert torch.equal(trainer.weights.master, whole)
    line = next(line for line in capsys.readouterr().err.splitlines() if "damaged" in line)
    assert f"train: {state / 'step-00000007.pt'} is damaged (its checksum differs): going on from {state}" in line
    assert (state / "step-00000007.pt.bad").exists(), "what was trained is kept"


def test_both_damaged(build, stopped):
    for path in (stopped / "state").glob("*.pt"):
        damage(path, "a bit")
    before = sorted(os.listdir(stopped / "state"))
    with pytest.raises(
        StateError, match=r"step-00000007.pt is damaged .*step-00000006.pt is damaged .* begin the stage"
    ):
        trainer_in(build, stopped).run()
    assert sorted(os.listdir(stopped / "state")) == before


def test_another_network_is_refused(stopped, build):
    trainer = make(build(n_routed_experts=8), Fixed([[batch_of(2)]]), stopped)
    with pytest.raises(StateError, match="is of another network"):
        trainer.run()
    network = network_of(trainer.weights)
    assert network["parameters"] == trainer.weights.master.numel()
    assert network["layout"] != network_of(trainer_in(build, stopped).weights)["layout"]


def test_what_a_killed_writer_left_is_swept(build, stopped):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    names = [f".step-00000008.pt.{dead.pid}.tmp", ".new-config.json", ".tmpAb12cd"]
    for name in names:
        (stopped / "state" / name).write_text("half")
    alive = stopped / f".a.{os.getppid()}.tmp"
    alive.write_text("someone is writing this")
    trainer_in(build, stopped).run()
    assert alive.exists()
    assert not any((stopped / "state" / name).exists() for name in names)


def test_a_full_disk_at_every_write_in_turn(build, tmp_path, monkeypatch, whole):
    """Each failure is one line; the next start goes on from what was saved before it, to the same bits."""
    calls = {"left": 0}

    def failing(original):
        def wrapped(*args, **options):
            calls["left"] -= 1
            if calls["left"] == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return original(*args, **options)

        return wrapped

    class FullFile:
        def __init__(self, file):
            self.write, self.flush = failing(file.write), file.flush

    checked, said = module._Checked, []
    with monkeypatch.context() as patch:
        for name in ("fsync", "replace"):
            patch.setattr(os, name, failing(getattr(os, name)))
        patch.setattr(module, "_Checked", lambda file: checked(FullFile(file)))
        for turn in range(1, 400):
            calls["left"] = turn  # the later a start fails, the further it had come
            trainer = trainer_in(build, tmp_path)
            try:
                trainer.run()
                break
            except DiskError as error:
                said.append(str(error))
                assert not list(tmp_path.rglob(".*.tmp")), said
    assert len(said) > 50
    assert all("is full" in line and "\n" not in line for line in said)
    assert torch.equal(trainer.weights.master, whole)


def test_a_failed_save_says_from_where_it_goes_on(build, tmp_path, monkeypatch):
    def refused(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    ask = lambda step: step == 4 and monkeypatch.setattr(torch, "save", refused)
    with pytest.raises(DiskError, match=r"needs \d+\.\d .iB, .* run the same command again: it goes on from step 3$"):
        trainer_in(build, tmp_path, before=ask).run()


def test_a_stage_that_would_fill_the_disk_is_refused_before_it_begins(build, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("ziphius.train.resume.free_bytes", lambda folder: 1000)
    with pytest.raises(DiskError, match=r"train would fill the disk of .* \(3 states of .*, and 1000 bytes are free"):
        trainer_in(build, tmp_path).run()
    assert not (tmp_path / "metrics.jsonl").exists()
    monkeypatch.setattr("ziphius.train.resume.free_bytes", lambda folder: 3_500_000)
    trainer_in(build, tmp_path).run()
    assert "train: little room on the disk: 3.3 MiB are free for up to" in capsys.readouterr().err
