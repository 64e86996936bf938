"""A kill at any moment leaves the old set or the new one."""

import errno
import os

import pytest
import torch
from safetensors import SafetensorError

from ziphius.checkpoint import load_model, save_model, shards
from ziphius.checkpoint.commit import commit, complete, staged, sweep
from ziphius.cost.flops import count_parameters
from ziphius.disk.errors import DiskError
from ziphius.model.presets import ladder

SMALL = ladder(
    2, vocab_size=32, hidden_size=16, intermediate_size=16, moe_intermediate_size=8, n_routed_experts=2,
    num_experts_per_tok=1, num_attention_heads=1, kv_lora_rank=8, num_nextn_predict_layers=0,
)  # fmt: skip
ONE, SEVERAL = 10**9, 4 * count_parameters(SMALL).total // 3


@pytest.mark.parametrize("shards", [(ONE, SEVERAL), (SEVERAL, SEVERAL), (SEVERAL, ONE)])
def test_killed_anywhere(tmp_path, build, shards):
    """A writer dies before its n-th change, for every n; whoever loads next finds a whole network."""
    old, new = build(SMALL, seed=0), build(SMALL, seed=1)
    outcomes = []
    for fatal in range(1, 200):
        folder = tmp_path / str(fatal)
        save_model(old, folder, shards[0])
        (folder / "tokenizer.json").write_text("kept")
        finished = _write_and_die(new, folder, shards[1], fatal)
        loaded = load_model(folder).state_dict()
        matches = [all(torch.equal(loaded[n], x) for n, x in m.state_dict().items()) for m in (old, new)]
        assert sum(matches) == 1, f"killed before change {fatal}: a mixture"
        assert (folder / "tokenizer.json").read_text() == "kept"
        assert not (folder / ".commit.json").exists()
        outcomes.append(matches[1])
        if finished:
            break
    assert finished
    assert outcomes == sorted(outcomes), "once the new set is decided on, it stays"
    assert len(set(outcomes)) == 2
    save_model(old, folder, shards[0])
    assert not list(folder.glob(".*"))


def _write_and_die(model, folder, shard_bytes, fatal) -> bool:
    """In a child process: save, and die before the `fatal`-th rename, removal or flush. True if it finished."""
    child = os.fork()
    if child == 0:
        seen = 0

        def count(original):
            def wrapped(*args, **kwargs):
                nonlocal seen
                seen += 1
                if seen == fatal:
                    os._exit(9)
                return original(*args, **kwargs)

            return wrapped

        for name in ("replace", "unlink", "rename", "fsync"):
            setattr(os, name, count(getattr(os, name)))
        try:
            save_model(model, folder, shard_bytes)
        except BaseException:
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 0


class Killed(Exception):
    pass


def killed_at(monkeypatch, fatal, action, *args) -> bool:
    """Run `action` up to its `fatal`-th change of the folder. True if it finished."""
    seen = 0

    def stopping(original):
        def wrapped(*inner, **options):
            nonlocal seen
            seen += 1
            if seen == fatal:
                raise Killed
            return original(*inner, **options)

        return wrapped

    with monkeypatch.context() as patch:
        for name in ("replace", "unlink"):
            patch.setattr(os, name, stopping(getattr(os, name)))
        try:
            action(*args)
        except Killed:
            return False
    return True


def test_killed_again_while_completing(tmp_path, monkeypatch):
    for first in range(1, 9):
        for second in range(1, 9):
            folder = tmp_path / f"{first}-{second}"
            folder.mkdir()
            for name in ("a", "b", "config.json"):
                (folder / name).write_text("old")
            for name in ("a", "config.json"):
                staged(folder, name).write_text("new")
            killed_at(monkeypatch, first, commit, folder, ["a", "config.json"], ["b"])
            killed_at(monkeypatch, second, complete, folder)
            complete(folder)
            content = {path.name: path.read_text() for path in folder.glob("[!.]*")}
            assert content in ({"a": "old", "b": "old", "config.json": "old"}, {"a": "new", "config.json": "new"})


def test_an_unfinished_commit_hides_the_folder_from_others(tmp_path, monkeypatch):
    """Between two renames a reader that knows no journal finds no config.json, not a mixture."""
    for name in ("a", "config.json"):
        (tmp_path / name).write_text("old")
        staged(tmp_path, name).write_text("new")
    # the journal, the old config.json, a, and then config.json
    assert not killed_at(monkeypatch, 4, commit, tmp_path, ["a", "config.json"], [])
    assert (tmp_path / "a").read_text() == "new"
    assert not (tmp_path / "config.json").exists()
    complete(tmp_path)
    assert (tmp_path / "config.json").read_text() == "new"
    assert sorted(os.listdir(tmp_path)) == ["a", "config.json"]


# --- a disk that refuses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["save_file", "fsync", "replace"])
def test_a_full_disk_is_one_line_and_leaves_the_old_set(tmp_path, build, monkeypatch, call):
    old, new = build(SMALL, seed=0), build(SMALL, seed=1)
    save_model(old, tmp_path)
    before = sorted(os.listdir(tmp_path))
    error = OSError(errno.ENOSPC, "No space left on device")
    if call == "save_file":  # as safetensors words what its Rust side meets
        error = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    def refuse(*_, **__):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(shards if call == "save_file" else os, call, refuse)
        with pytest.raises(DiskError, match=rf"the disk of {tmp_path} is full: .* needs \d+\.\d KiB, .* are free"):
            save_model(new, tmp_path)
    assert sorted(os.listdir(tmp_path)) == before
    assert torch.equal(load_model(tmp_path).lm_head.weight, old.lm_head.weight)


def test_other_errors_of_the_library_stay_what_they_are(tmp_path, build, monkeypatch):
    def refuse(*_, **__):
        raise SafetensorError("tensors overlap")

    monkeypatch.setattr(shards, "save_file", refuse)
    with pytest.raises(SafetensorError, match="overlap"):
        save_model(build(SMALL), tmp_path)
    assert not list(tmp_path.iterdir())


def test_sweeping_completes_what_was_decided_on_and_clears_the_rest(tmp_path, monkeypatch):
    decided, begun = tmp_path / "a" / "decided", tmp_path / "begun"
    for folder in (decided, begun):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("old")
        staged(folder, "config.json").write_text("new")
    assert not killed_at(monkeypatch, 2, commit, decided, ["config.json"], [])
    (begun / ".tmpx4f0Zq").write_text("half a shard")
    (begun / ".gitignore").write_text("someone's")
    assert sweep(tmp_path) == 2
    assert sorted(os.listdir(decided)) == ["config.json"]
    assert (decided / "config.json").read_text() == "new"
    assert sorted(os.listdir(begun)) == [".gitignore", "config.json"]
    assert (begun / "config.json").read_text() == "old"
    assert sweep(tmp_path) == 0
    assert sweep(tmp_path / "nowhere") == 0
