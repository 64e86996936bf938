"""The log: one line of JSON for whatever any part of the process has to say, which nobody has to wait for.

A line is written by a thread of its own. Where its reader does not read, lines are dropped and counted, never waited
for: a full pipe must not stop the service.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

MOST = 200  # characters of a value that somebody else may have chosen
_MOST_SAID = 20_000  # characters of a prompt or an answer, which the settings have asked for
_MOST_TRACE = 8_000
_MOST_ENTRIES = 128
_SAID = ("prompt", "answer")
_WAITING_LINES, _WAITING_BYTES = 2_000, 8 * 2**20
_AT_EXIT = 1.0  # seconds that the last lines have to be read


def short(text: str, most: int = MOST) -> str:
    """A text of at most `most` characters; of a longer one the beginning and the end."""
    if len(text) <= most:
        return text
    end = most // 4
    return f"{text[: most - end - 1]}…{text[len(text) - end :]}"


def bounded(value: Any, most: int = MOST) -> Any:
    """A value for the log: strings no longer than `most` characters, lists and tables no longer than 128 entries."""
    if isinstance(value, str):
        return short(value, most)
    if isinstance(value, Mapping):
        items = list(value.items())[:_MOST_ENTRIES]
        return {short(str(key)): bounded(part, _MOST_SAID if key in _SAID else most) for key, part in items}
    if isinstance(value, list | tuple):
        return [bounded(part, most) for part in value[:_MOST_ENTRIES]]
    return value if value is None or isinstance(value, bool | int | float) else short(str(value), most)


def as_line(event: Mapping[str, Any]) -> str:
    """An event as one line of ASCII: no character of a client's can end it or speak to a terminal."""
    return json.dumps(bounded(event), ensure_ascii=True)


class JsonLines(logging.Formatter):
    """Records as lines of JSON. One whose `event` is a table is that table."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"time": when.replace("+00:00", "Z"), "level": record.levelname.lower()}
        event = getattr(record, "event", None)
        line |= event if event is not None else {"logger": record.name, "message": short(record.getMessage(), 2_000)}
        made = bounded(line, 2_000 if event is None else MOST)
        if record.exc_info:
            made["traceback"] = short(self.formatException(record.exc_info), _MOST_TRACE)
        return json.dumps(made, ensure_ascii=True)


class PipeHandler(logging.Handler):
    """Writes records to a file descriptor from a thread of its own; `dropped` counts what nobody was there to read."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self.setFormatter(JsonLines())
        self.dropped = 0
        self._descriptor = descriptor
        self._said_dropped = 0
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._news = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = (self.format(record) + "\n").encode()
        except Exception:  # a record that cannot be formatted must not end whoever made it
            line = b'{"level": "error", "message": "a line of the log could not be made"}\n'
        with self._news:
            if self._closing or len(self._lines) >= _WAITING_LINES or self._bytes + len(line) > _WAITING_BYTES:
                self.dropped += 1
                return
            if self.dropped > self._said_dropped:
                line = b'{"dropped": %d, %b' % (self.dropped - self._said_dropped, line[1:])
                self._said_dropped = self.dropped
            self._lines.append(line)
            self._bytes += len(line)
            self._news.notify()

    def close(self) -> None:
        """Give the lines that wait a second to be read."""
        with self._news:
            again, self._closing = self._closing, True
            self._news.notify()
        if not again:
            self._thread.join(_AT_EXIT)
        super().close()

    def _write(self) -> None:
        while True:
            with self._news:
                while not (self._lines or self._closing):
                    self._news.wait()
                if not self._lines:
                    return
                line = self._lines.popleft()
                self._bytes -= len(line)
            try:
                while line:
                    line = line[os.write(self._descriptor, line) :]
            except OSError:  # nobody will ever read
                with self._news:
                    self.dropped += 1


@contextmanager
def json_log(handler: logging.Handler) -> Iterator[None]:
    """While the block runs, whatever the process would write to standard error goes to `handler`: all loggers,
    warnings, exceptions that nobody caught, and what is printed there.
    """
    root, ours = logging.getLogger(), logging.getLogger("ziphius.serve")
    before = root.handlers[:], root.level, ours.level
    hooks = sys.excepthook, threading.excepthook, sys.unraisablehook, sys.stderr
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    ours.setLevel(logging.INFO)
    logging.captureWarnings(True)
    warnings.simplefilter("default")
    sys.excepthook = _uncaught
    threading.excepthook = lambda failed: _uncaught(failed.exc_type, failed.exc_value, failed.exc_traceback)
    sys.unraisablehook = lambda failed: _uncaught(failed.exc_type, failed.exc_value, failed.exc_traceback)
    sys.stderr = _Printed()
    try:
        yield
    finally:
        sys.excepthook, threading.excepthook, sys.unraisablehook, sys.stderr = hooks
        logging.captureWarnings(False)
        root.handlers[:], root.level, ours.level = before[0], before[1], before[2]
        handler.close()


def _uncaught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    logging.getLogger("ziphius.serve").error("an exception that nobody caught", exc_info=(kind, error or kind(), trace))


class _Printed:
    """A text file whose lines become lines of the log."""

    encoding, errors = "utf-8", "backslashreplace"

    def __init__(self) -> None:
        self._begun = ""

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in [*lines, *([self._begun] if len(self._begun) > 2_000 else [])]:
            if line.strip():
                logging.getLogger("stderr").warning("%s", line)
        self._begun = self._begun if len(self._begun) <= 2_000 else ""
        return len(text)

    def flush(self) -> None:
        """Every line is on its way already."""

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        return 2


class Seldom:
    """Says what happens often at most once in `seconds` a kind, with the number of `times` since the last line."""

    def __init__(self, log: logging.Logger, seconds: float) -> None:
        self._log, self._seconds = log, seconds
        self._last: dict[str, float] = {}
        self._times: dict[str, int] = {}

    def say(self, kind: str, event: Mapping[str, Any]) -> None:
        """`kind` is one of a few; `event` becomes the line."""
        self._times[kind] = self._times.get(kind, 0) + 1
        now = time.monotonic()
        if now - self._last.get(kind, -self._seconds) >= self._seconds:
            self._last[kind] = now
            say(self._log, {**event, "times": self._times.pop(kind)}, logging.WARNING)


def say(log: logging.Logger, event: Mapping[str, Any], level: int = logging.INFO) -> None:
    """An event into the log: the line's text, for whoever listens, and the table itself for `JsonLines`."""
    log.log(level, "%s", as_line(event), extra={"event": event})
