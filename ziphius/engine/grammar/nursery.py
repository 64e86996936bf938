"""Starts and ends the processes of grammars."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import threading
import weakref
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import ziphius
from ziphius.engine.grammar.process import BEAR, BURY, PID, Birth

_CODE = "from ziphius.engine.grammar.process import main; main()"
_START_LIMIT_S = 120.0  # a second, and far longer on a busy machine


class Copy(NamedTuple):
    """A process, and the first one's socket, by which it is buried."""

    pid: int
    control: socket.socket


class Nursery:
    """One process that has the tokenizer ready and is copied for each grammar; started at the first need, and anew
    where it was killed. It ends when this object or this process does. Thread-safe."""

    def __init__(self, birth: Birth) -> None:
        self._birth = birth
        self._lock = threading.Lock()
        self._control: socket.socket | None = None
        self._end: weakref.finalize | None = None
        self.pid: int | None = None  # of the first process, once there is one

    def bear(self) -> tuple[Copy, socket.socket]:
        """A new copy, and the socket to talk to it. Raises RuntimeError where none can be started."""
        with self._lock:
            for _ in range(2):
                control = self._control or self._start()
                ours, theirs = socket.socketpair()
                try:
                    socket.send_fds(control, [BEAR], [theirs.fileno()])
                    return Copy(self._number(control), control), ours
                except OSError:  # someone killed it
                    ours.close()
                    self._stop()
                finally:
                    theirs.close()
        raise RuntimeError("the process that reads grammars ended twice; see the system's log for who killed it")

    def bury(self, copy: Copy) -> int | None:
        """Kill a copy, unless it has ended; its exit code (minus the signal). Only once for each.

        None where the first process has been killed: nobody knows then, and the copy ends with its socket or its time.
        """
        with self._lock:
            if copy.control is not self._control:
                return None
            try:
                with suppress(ProcessLookupError):
                    os.kill(copy.pid, signal.SIGKILL)  # its number is not given away before the next line
                copy.control.sendall(BURY + PID.pack(copy.pid))
                return self._number(copy.control)
            except OSError:
                self._stop()
                return None

    def _start(self) -> socket.socket:
        control, theirs = socket.socketpair()
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", _CODE],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=_environment(),
                start_new_session=True,
            )
        finally:
            theirs.close()
        self.pid = process.pid
        self._end = weakref.finalize(self, _end, control, process)
        try:
            control.settimeout(_START_LIMIT_S)
            birth = pickle.dumps(self._birth)
            control.sendall(struct.pack("<Q", len(birth)) + birth)
            self._number(control)
        except OSError as error:
            self._stop()
            hint = f"run {sys.executable} -P -c 'import ziphius.engine.grammar.process' to see why"
            raise RuntimeError(f"the process that reads grammars did not start ({error}); {hint}") from error
        self._control = control
        return control

    def _stop(self) -> None:
        if self._end is not None:
            self._end()
        self._control = self._end = None

    def _number(self, control: socket.socket) -> int:
        data = b""
        while len(data) < PID.size:
            more = control.recv(PID.size - len(data))
            if not more:
                raise OSError("it ended")
            data += more
        return int(PID.unpack(data)[0])


def _end(control: socket.socket, process: subprocess.Popen[bytes]) -> None:
    control.close()
    process.kill()
    process.wait()


def _environment() -> dict[str, str]:
    """This one's, with the package to be found and no threads beside: a copy of a process has only one."""
    paths = [str(Path(ziphius.__file__).parents[1]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    one = {"TOKENIZERS_PARALLELISM": "false", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    return {**os.environ, **one, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
