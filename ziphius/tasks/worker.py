"""The process that judges answers. `process.py` starts it; it confines itself, then takes one check after another.

In: frames of eight bytes of length and a pickle (number, the verifier's pickle, problem, answer); whoever sends them is
trusted. Out: lines of JSON, since whoever reads them trusts nothing: `["ready", layers]` once, and for each check
`[number, "begun"]` when the clock starts and `[number, score, reason]` when it is judged.

The number is drawn at random for each check, and the standard files lead nowhere, so that what a library prints or a
blind write cannot pass for a verdict. Code that runs *inside* this interpreter could still read the number and answer
in the checker's place: no process can hide that from itself. That is why nothing an answer holds is executed by the
families here (`gates.py`); a checker of your own that executes answers must expect them to lie about themselves.
"""

import json
import os
import pickle
import random
import signal
import struct
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from ziphius.tasks.base import Problem
from ziphius.tasks.sandbox.confine import confine
from ziphius.tasks.verifier import Judge, Verifier

HEADER = struct.Struct("<Q")
REASON = 200  # characters
RETIRE_S = 3600.0  # of processor time; computer algebra keeps what it has seen, and memory is bounded


def main() -> None:
    """Entry of the process; its one argument says where it may write, what it may read and who started it."""
    start = json.loads(sys.argv[1])
    jobs, replies = _channels()
    layers = confine(Path(start["scratch"]), map(Path, start["reads"]), start["memory_bytes"])
    if os.getppid() != start["parent"]:  # it died before the kernel could be told to end us with it
        return
    _say(replies, ["ready", layers])
    judges: dict[bytes, Judge] = {}
    while (frame := _frame(jobs)) and time.process_time() < RETIRE_S:
        number, described, problem, answer = pickle.loads(frame)
        verifier = pickle.loads(described)
        if described not in judges:
            judges[described] = _loaded(verifier)
        _say(replies, [number, "begun"])
        _seed()
        signal.setitimer(signal.ITIMER_PROF, verifier.limit_s)  # its signal ends the process, whatever it is doing
        score, reason, sound = _judged(judges[described], problem, answer)
        signal.setitimer(signal.ITIMER_PROF, 0)
        _say(replies, [number, score, reason])
        if not sound:
            return


def _loaded(verifier: Verifier) -> Judge:
    """The verifier's judge; one that fails to load leaves every answer undecided, and says why."""
    try:
        return verifier.load()
    except BaseException as error:
        reason = f"the checker cannot be loaded: {_text(error)}"
        return lambda problem, answer: (None, reason)


def _judged(judge: Judge, problem: Problem, answer: str) -> tuple[float | None, str, bool]:
    """Score, reason, and whether this process may judge on."""
    try:
        score, reason = judge(problem, answer)
        if score is None or 0 <= float(score) <= 1:
            return None if score is None else float(score), str(reason)[:REASON], True
        return None, f"the checker gave {float(score)}, which is no score from 0 to 1", True
    except MemoryError:
        return None, "the check needed more memory than its process may take", False
    except BaseException as error:
        return None, f"the checker failed: {_text(error)}"[:REASON], True


def _channels() -> tuple[IO[bytes], int]:
    """Where jobs come from and where replies go, out of the way of what uses the standard files."""
    jobs, replies = os.fdopen(os.dup(0), "rb"), os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    return jobs, replies


def _frame(jobs: IO[bytes]) -> bytes:
    """The next job; nothing at the end."""
    header = jobs.read(HEADER.size)
    return jobs.read(HEADER.unpack(header)[0]) if len(header) == HEADER.size else b""


def _say(replies: int, value: Any) -> None:
    os.write(replies, json.dumps(value).encode() + b"\n")  # well below what a pipe takes at once


def _seed() -> None:
    """Computer algebra tries identities at random points: the same ones each time."""
    random.seed(0)
    with suppress(KeyError):
        sys.modules["sympy.core.random"].seed(0)


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:REASON]


if __name__ == "__main__":
    main()
