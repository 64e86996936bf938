"""One run, one folder, one lock: two runs in one folder would write over each other. Imports no torch."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from pathlib import Path
from typing import IO

_FILE = "lock.json"


class Lock:
    """The lock of the folder `run`. The system gives it back when its owner dies: a stale one is simply taken."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._file: IO[str] | None = None

    def take(self) -> str | None:
        """Take the lock; a sentence with the owner's process and machine where another holds it, None otherwise."""
        self._run.mkdir(parents=True, exist_ok=True)
        file = (self._run / _FILE).open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            refusal = (
                f"{self._run} is in use by {_owner(file)}; wait for it, stop it, or give this run another folder with "
                "--name or --out"
            )
            file.close()
            return refusal
        file.truncate(0)
        json.dump({"pid": os.getpid(), "host": socket.gethostname()}, file)
        file.flush()
        self._file = file
        return None

    def release(self) -> None:
        if self._file is not None:
            self._file.truncate(0)
            self._file.close()
            self._file = None


def _owner(file: IO[str]) -> str:
    file.seek(0)
    try:
        owner = json.loads(file.read())
        return f"process {owner['pid']} on {owner['host']}"
    except (ValueError, KeyError):  # it has just taken the lock, or is about to give it back
        return "another process"
