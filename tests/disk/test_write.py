"""A file is whole or absent, and what is said when the disk refuses."""

import errno
import os
import resource
import subprocess
import sys

import pytest

from ziphius.disk.errors import DiskError, explain, size
from ziphius.disk.write import LEFTOVERS, abandoned, replacing, write_text


def refuse(number):
    def refused(*_, **__):
        raise OSError(number, os.strerror(number))

    return refused


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, ["is full", "needs 2.0 KiB", "are free", "make room and run the same command again"]),
        (errno.EDQUOT, ["quota", "needs 2.0 KiB"]),
        (errno.EROFS, ["read-only", "mount it for writing"]),
        (errno.EACCES, ["may not be used by this user"]),
        (errno.EMFILE, ["too many files are open", "ulimit -n is"]),
        (errno.EIO, ["fails (Input/output error)"]),
    ],
)
def test_a_refused_write_is_one_line_and_leaves_the_old_file(tmp_path, monkeypatch, call, number, words):
    path = tmp_path / "a.json"
    write_text(path, "old")
    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse(number))
        with pytest.raises(DiskError) as refused, replacing(path, 2048) as aside:
            aside.write_text("new")
    assert all(word in str(refused.value) for word in [*words, str(tmp_path)])
    assert "\n" not in str(refused.value)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "a"):
        (tmp_path / "nowhere" / "b").read_text()
    assert explain(OSError(errno.ENOENT, "?"), tmp_path) is None
    with pytest.raises(KeyError), replacing(tmp_path / "a"):
        raise KeyError
    assert not os.listdir(tmp_path)


def test_a_limit_on_the_size_of_files(tmp_path):
    """The system's own refusal, in a process of its own."""
    program = f"""
import resource
from pathlib import Path
from ziphius.disk.write import write_text
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
write_text(Path({str(tmp_path / "a")!r}), "x" * 5000)
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stderr.splitlines()[-1]
    assert said.startswith("ziphius.disk.errors.DiskError: ulimit -f, 4.0 KiB, allows no larger file: saving")
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 4096
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("deep", ["file", "file/folder"])
def test_a_file_in_the_place_of_a_folder(tmp_path, deep):
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match=f"{tmp_path / deep} cannot be a folder, for a file stands in its place"):
        write_text(tmp_path / deep / "a", "x")


def test_whose_leftovers_are_abandoned(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    left = tmp_path / f".a.{child.pid}.tmp"
    left.write_text("x")
    assert list(tmp_path.glob(LEFTOVERS)) == [left]
    assert not abandoned(left)
    child.communicate()
    assert abandoned(left)
    assert abandoned(tmp_path / f".a.{os.getpid()}.tmp")
    assert abandoned(tmp_path / ".a.tmp")


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (5 << 20, "5.0 MiB"), (3 << 40, "3072.0 GiB")],
)
def test_sizes(count, text):
    assert size(count) == text
