"""Where a run's time goes: one file a start, with what it did and for how long.

A run's bills must add up to the time that it held the machine, whatever ended it. So time is never booked at the end
of a piece of work, which a kill would prevent or a second start repeat: each start says on beginning what it does, and
writes down once a second that it lives. What it was doing when it died lasted until then.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ziphius.disk.errors import DiskError
from ziphius.ledger.folder import read_json, write_json

WAITING = "start-up and waiting"
_FOLDER = "time"


class Clock:
    """One start of a run; only the process that writes the run's files has one with a folder.

    `machine`: its `device` and `devices`, and `dollars_per_hour` of it all. `began`: when the start began (seconds
    since 1970), for a process whose parent worked before it.
    """

    def __init__(self, run: Path | None, machine: dict[str, Any], began: float | None = None) -> None:
        self._path: Path | None = None
        if run is None:
            return
        self._machine = machine
        self._path = run / _FOLDER / f"{len(_starts(run)) + 1:04d}.json"
        self._spans: list[tuple[str, float]] = []
        self._since = began or time.time()
        self._enter(WAITING)
        self._stopped = threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()

    @contextmanager
    def during(self, what: str) -> Iterator[None]:
        """Time within the block is `what`'s, also when the block is left by an error."""
        self._turn(what)
        try:
            yield
        except BaseException:
            with suppress(DiskError):  # a disk that refuses this too must not speak in place of what went wrong
                self._turn(WAITING)
            raise
        self._turn(WAITING)

    def close(self) -> None:
        """The end of the start."""
        if self._path is not None:
            self._stopped.set()
            with suppress(DiskError):  # the last sign of life then says when it was
                self._turn(WAITING)
                _alive(self._path).unlink(missing_ok=True)

    def _turn(self, what: str) -> None:
        if self._path is None:
            return
        now = time.time()
        self._spans.append((self._doing, now - self._since))
        self._since = now
        self._enter(what)

    def _enter(self, what: str) -> None:
        self._doing = what
        assert self._path is not None
        write_json(self._path, {"machine": self._machine, "spans": self._spans, "doing": what, "since": self._since})

    def _beat(self) -> None:
        assert self._path is not None
        while not self._stopped.wait(1.0):
            with suppress(OSError):
                _alive(self._path).write_text(f"{time.time():.3f}")


def time_spent(run: Path) -> Counter[str]:
    """Seconds of everything that the starts of a run did, killed ones included."""
    spent: Counter[str] = Counter()
    for path in _starts(run):
        start = read_json(path)
        for what, seconds in start["spans"]:
            spent[what] += seconds
        spent[start["doing"]] += max(0.0, _last_sign(path) - start["since"])
    return spent


def last_start(run: Path) -> dict[str, Any] | None:
    """The machine of the last start; None where there was none."""
    starts = _starts(run)
    return read_json(starts[-1])["machine"] if starts else None


def _alive(start: Path) -> Path:
    """Where a start writes the time once a second. A time of change would not do: copying a run changes it."""
    return start.with_suffix(".alive")


def _last_sign(start: Path) -> float:
    try:
        return float(_alive(start).read_text())
    except (OSError, ValueError):  # it ended well, or was killed within a second, or in the midst of writing
        return 0.0


def _starts(run: Path) -> list[Path]:
    return sorted((run / _FOLDER).glob("*.json"))
