"""One worker process as its owner sees it: started, given one check at a time, watched, and ended.

What it says is hostile data: at most `MAX_LINE` bytes of JSON of the expected form, or the process is done for.
"""

import json
import math
import os
import pickle
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, cast

import ziphius
from ziphius.disk.write import is_alive
from ziphius.tasks.base import TaskError, Verdict
from ziphius.tasks.verifier import Check
from ziphius.tasks.worker import HEADER, REASON

MEMORY_BYTES = 2 << 30
MAX_LINE = 4096
START_LIMIT_S = 120.0  # starting, and loading a verifier, takes a second or two, and far longer on a busy machine
WALL_FACTOR, WALL_EXTRA_S = 6.0, 10.0  # a check's limit is of processor time: a busy machine may take this much longer
SCRATCH = "ziphius-worker-"
CODE = "from ziphius.tasks.worker import main; main()"
PASSED_ON = ("LD_LIBRARY_PATH", "PYTHONHOME")  # some Pythons do not start without


class WorkerGone(Exception):
    """The process is of no more use. begun: it had begun with the check, which is then undecided."""

    def __init__(self, reason: str, begun: bool) -> None:
        super().__init__(reason)
        self.begun = begun


class Worker:
    """Raises TaskError where it does not start. layers: what confines it; see `confine`."""

    def __init__(self, reads: Iterable[Path]) -> None:
        self.reads = frozenset(reads)
        self._unread = b""
        self._scratch = tempfile.mkdtemp(prefix=f"{SCRATCH}{os.getpid()}-")
        order = {
            "scratch": self._scratch,
            "reads": sorted(map(str, self.reads)),
            "memory_bytes": MEMORY_BYTES,
            "parent": os.getpid(),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", CODE, json.dumps(order)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=self._scratch,
            env=_environment(self._scratch),
            start_new_session=True,  # Ctrl-C is for the run, which then ends its workers
        )
        self._jobs, self._replies = cast(IO[bytes], self._process.stdin), cast(IO[bytes], self._process.stdout)
        os.set_blocking(self._jobs.fileno(), False)
        try:
            word, self.layers = self._line(START_LIMIT_S, begun=False)
            if word != "ready" or not isinstance(self.layers, dict):
                raise WorkerGone("it began with something else than it should", begun=False)
        except (WorkerGone, ValueError, TypeError) as error:
            self.close()
            hint = f"run {sys.executable} -P -c 'import ziphius.tasks.worker' to see why"
            raise TaskError(f"tasks: the process that judges answers did not start ({error}); {hint}") from error

    def check(self, check: Check, described: bytes) -> Verdict:
        """The verdict on one answer. described: the verifier's pickle. Raises WorkerGone where there is none."""
        number = secrets.randbits(53)
        frame = pickle.dumps((number, described, check.problem, check.answer))
        self._write(HEADER.pack(len(frame)) + frame)
        reply = self._line(START_LIMIT_S, begun=False)
        if reply == [number, "begun"]:
            limit_s = check.verifier.limit_s
            reply = self._line(WALL_FACTOR * limit_s + WALL_EXTRA_S, begun=True, limit_s=limit_s)
        match reply:
            case [int(echo), None | float() as score, str(reason)] if echo == number:
                if score is None or (math.isfinite(score) and 0 <= score <= 1):
                    return Verdict(score, "".join(c if c.isprintable() else " " for c in reason[:REASON]))
        raise WorkerGone("the checker's process gave a reply that is none", begun=True)

    def close(self) -> None:
        """Ends the process and removes what it wrote. For its owner; anyone may `stop` it."""
        self.stop()
        self._process.wait()
        self.abandon()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def stop(self) -> None:
        """Kills the process: whoever waits for it is told by WorkerGone."""
        self._process.kill()

    def abandon(self) -> None:
        """Lets go of a process that belongs to someone else: after a fork, to the parent."""
        for pipe in (self._jobs, self._replies):
            with suppress(OSError):
                pipe.close()

    def _write(self, data: bytes) -> None:
        end, view = time.monotonic() + START_LIMIT_S, memoryview(data)
        pipe = self._jobs.fileno()
        while view:
            if not _ready(pipe, select.POLLOUT, end):
                raise WorkerGone("the checker's process took no more answers", begun=False)
            try:
                view = view[os.write(pipe, view) :]
            except OSError as error:
                raise WorkerGone(self._end(None), begun=False) from error

    def _line(self, seconds: float, begun: bool, limit_s: float | None = None) -> Any:
        """The next thing it says. Raises WorkerGone where that does not come in time, whole and as JSON."""
        end = time.monotonic() + seconds
        while b"\n" not in self._unread:
            if not _ready(self._replies.fileno(), select.POLLIN, end):
                raise WorkerGone(f"the check was not done after {seconds:g} s", begun)
            piece = os.read(self._replies.fileno(), MAX_LINE)
            if not piece:
                raise WorkerGone(self._end(limit_s), begun)
            self._unread += piece
            if len(self._unread) > MAX_LINE:
                raise WorkerGone("the checker's process said more than it should", begun)
        line, self._unread = self._unread.split(b"\n", 1)
        try:
            return json.loads(line)
        except (ValueError, RecursionError) as error:
            raise WorkerGone("the checker's process gave a reply that is none", begun) from error

    def _end(self, limit_s: float | None) -> str:
        """How the process ended."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=10)
        code = self._process.returncode
        if code == -signal.SIGPROF and limit_s is not None:
            return f"the check took longer than {limit_s:g} s of processor time"
        how = f"code {code}" if code is None or code >= 0 else signal.Signals(-code).name
        return f"the checker's process ended ({how})"


def sweep() -> None:
    """Removes what the workers of processes left that were killed themselves."""
    for folder in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*-*"):
        owner = folder.name.removeprefix(SCRATCH).split("-")[0]
        with suppress(OSError):
            if owner.isdigit() and folder.stat().st_uid == os.getuid() and not is_alive(int(owner)):
                shutil.rmtree(folder)


def _ready(pipe: int, event: int, end: float) -> bool:
    """Whether the pipe is before `end` (or broken, which the next call on it will say)."""
    poll = select.poll()
    poll.register(pipe, event)
    return bool(poll.poll(max(0.0, end - time.monotonic()) * 1000))


def _environment(scratch: str) -> dict[str, str]:
    """Nothing of ours but what Python needs: no keys, no tokens. The same hashes and one thread each time."""
    paths = [str(Path(ziphius.__file__).parents[1]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    one = {f"{library}_NUM_THREADS": "1" for library in ("OPENBLAS", "OMP", "MKL")}
    own = {
        "PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in paths if path),
        "PYTHONHASHSEED": "0",
        "PYTHONUTF8": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": scratch,
        "TMPDIR": scratch,
    }
    return own | one | {name: os.environ[name] for name in PASSED_ON if name in os.environ}
