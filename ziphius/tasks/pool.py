"""Worker processes that judge answers, shared by all families of a process: started at the first need, kept up, and
replaced one by one as answers break them.

Every worker has a thread here that owns it, so that the kernel ends the worker with it, and an interrupt of the caller
never finds a worker in the middle of a reply.
"""

import atexit
import os
import pickle
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue

from ziphius.tasks.base import TaskError, Verdict
from ziphius.tasks.process import Worker, WorkerGone, sweep
from ziphius.tasks.sandbox.confine import sentence
from ziphius.tasks.verifier import Check

MAX_ANSWER = 100_000  # characters; no right answer of any family comes near it
ANOTHER_FROM = 32  # checks in a batch for each further worker: starting one costs as much as judging hundreds

CLOSED = "tasks: the processes that judge answers are closed; ask for shared_pool() anew"

Job = tuple["Future[Verdict]", Check, bytes]


class Pool:
    """At most `size` workers (default: two, where there are cores for them). Thread-safe."""

    def __init__(self, size: int | None = None) -> None:
        self.size = size or max(1, min(2, _cores()))
        self.jobs: SimpleQueue[Job | None] = SimpleQueue()
        self.reads: frozenset[Path] = frozenset()
        self.unloadable: dict[bytes, str] = {}  # pickles of verifiers, and why
        self.closed = False
        self._lock = threading.Lock()
        self._owners: list[Owner] = []

    def judge(self, checks: Sequence[Check]) -> list[Verdict]:
        """The verdict on each, in order; None as score where a check broke its worker or a limit.

        Raises TaskError where no worker can be started.
        """
        with self._lock:
            if self.closed:
                raise TaskError(CLOSED)
            self.reads |= {folder for check in checks for folder in check.verifier.reads}
            for _ in range(len(self._owners), min(self.size, 1 + len(checks) // ANOTHER_FROM)):
                self._owners.append(Owner(self))
                self._owners[-1].start()
        distinct = {id(check.verifier): check.verifier for check in checks}
        described = {key: pickle.dumps(verifier) for key, verifier in distinct.items()}
        futures = [self._submit(check, described[id(check.verifier)]) for check in checks]
        try:
            return [future.result() for future in futures]
        except BaseException:  # an interrupt, or no worker: nobody waits for the rest
            for future in futures:
                future.cancel()
            raise

    def close(self) -> None:
        """Ends the workers; checks under way are undecided."""
        with self._lock:
            self.closed = True
        for owner in self._owners:
            owner.stop()
            self.jobs.put(None)
        for owner in self._owners:
            owner.join()

    def abandon(self) -> None:
        """In a forked child: the workers are the parent's."""
        for owner in self._owners:
            if owner.worker is not None:
                owner.worker.abandon()

    def _submit(self, check: Check, described: bytes) -> "Future[Verdict]":
        future: Future[Verdict] = Future()
        if len(check.answer) > MAX_ANSWER:
            future.set_result(Verdict(0.0, f"longer than {MAX_ANSWER} characters"))
        else:
            self.jobs.put((future, check, described))
        return future


class Owner(threading.Thread):
    """Starts one worker, gives it the pool's checks one by one, and replaces it when it is gone."""

    def __init__(self, pool: Pool) -> None:
        super().__init__(name="judge", daemon=True)
        self.pool = pool
        self.worker: Worker | None = None

    def run(self) -> None:
        while job := self.pool.jobs.get():
            future, check, described = job
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(self._verdict(check, described))
            except BaseException as error:  # told to whoever waits: the thread goes on
                self._discard()
                future.set_exception(error)
        self._discard()

    def stop(self) -> None:
        """Called from other threads: ends what the worker is doing."""
        if self.worker is not None:
            self.worker.stop()

    def _verdict(self, check: Check, described: bytes) -> Verdict:
        """From the worker; where that turns out to have ended before this check, from the next one. A verifier that
        ended both while it was loaded is not tried again."""
        if described in self.pool.unloadable:
            return Verdict(None, self.pool.unloadable[described])
        reason = ""
        for _ in range(2):
            try:
                return self._ready(check).check(check, described)
            except WorkerGone as gone:
                self._discard()
                reason = str(gone)
                if gone.begun or self.pool.closed:
                    return Verdict(None, reason)
        self.pool.unloadable[described] = reason
        return Verdict(None, reason)

    def _ready(self, check: Check) -> Worker:
        """A worker that may read what the check needs."""
        if self.worker is not None and not self.worker.reads.issuperset(check.verifier.reads):
            self._discard()
        if self.pool.closed:
            raise TaskError(CLOSED)
        if self.worker is None:
            self.worker = Worker(self.pool.reads)
            if self.pool.closed:  # since, by someone who saw no worker to stop
                self.worker.stop()
            _say_once(sentence(self.worker.layers))
        return self.worker

    def _discard(self) -> None:
        worker, self.worker = self.worker, None
        if worker is not None:
            worker.close()


def shared_pool() -> Pool:
    """The one of this process."""
    global _shared
    with _making:
        if _shared is None:
            sweep()
            _shared = Pool()
        return _shared


def close() -> None:
    """Ends the shared workers, if there are any; a later check starts them anew. Runs at exit by itself."""
    global _shared
    with _making:
        pool, _shared = _shared, None
    if pool is not None:
        pool.close()


def _forget() -> None:
    """In a forked child: locks, threads and workers are the parent's."""
    global _shared, _making
    pool, _shared, _making = _shared, None, threading.Lock()
    if pool is not None:
        pool.abandon()


def _say_once(text: str) -> None:
    """On stderr, by the first rank alone."""
    global _said
    if not _said and os.environ.get("RANK", "0") == "0":
        _said = True
        print(f"ziphius: {text}", file=sys.stderr, flush=True)


def _cores() -> int:
    """Cores for each of the processes of a run on this machine."""
    return (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


_making = threading.Lock()
_shared: Pool | None = None
_said = False
atexit.register(close)
os.register_at_fork(after_in_child=_forget)
