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
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._workers: set[Worker] = set()
        self._reads: frozenset[Path] = frozenset()
        self._closed = False

    def judge(self, checks: Sequence[Check]) -> list[Verdict]:
        """The verdict on each, in order; None as score where a check broke its worker or a limit.

        Raises TaskError where no worker can be started.
        """
        wanted = min(self.size, 1 + len(checks) // ANOTHER_FROM)
        with self._lock:
            if self._closed:
                raise TaskError(CLOSED)
            self._reads |= {folder for check in checks for folder in check.verifier.reads}
            while len(self._threads) < wanted:
                self._threads.append(threading.Thread(target=self._serve, name="judge", daemon=True))
                self._threads[-1].start()
        described = {id(check.verifier): check.verifier for check in checks}
        pickles = {key: pickle.dumps(verifier) for key, verifier in described.items()}
        futures = [self._submit(check, pickles[id(check.verifier)]) for check in checks]
        try:
            return [future.result() for future in futures]
        except BaseException:  # an interrupt, or no worker: nobody waits for the rest
            for future in futures:
                future.cancel()
            raise

    def close(self) -> None:
        """Ends the workers; checks under way are undecided."""
        with self._lock:
            self._closed = True
            for worker in self._workers:
                worker.stop()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def abandon(self) -> None:
        """In a forked child: the workers are the parent's."""
        for worker in self._workers:
            worker.abandon()

    def _submit(self, check: Check, described: bytes) -> "Future[Verdict]":
        future: Future[Verdict] = Future()
        if len(check.answer) > MAX_ANSWER:
            future.set_result(Verdict(0.0, f"longer than {MAX_ANSWER} characters"))
        else:
            self._jobs.put((future, check, described))
        return future

    def _serve(self) -> None:
        """The life of one worker's owner."""
        worker: Worker | None = None
        while job := self._jobs.get():
            future, check, described = job
            if not future.set_running_or_notify_cancel():
                continue
            try:
                if self._closed:
                    raise TaskError(CLOSED)
                worker, verdict = self._check(worker, check, described)
                future.set_result(verdict)
            except BaseException as error:  # the thread goes on; whoever waits is told
                worker = self._discard(worker)
                future.set_exception(error)
        self._discard(worker)

    def _check(self, worker: Worker | None, check: Check, described: bytes) -> tuple[Worker | None, Verdict]:
        """The verdict, and the worker that goes on. One that turns out to have ended before this check gets another."""
        reason = ""
        for _ in range(2):
            if worker is not None and not worker.reads.issuperset(check.verifier.reads):
                worker = self._discard(worker)
            if worker is None:
                worker = self._start()
            try:
                return worker, worker.check(check, described)
            except WorkerGone as gone:
                worker, reason = self._discard(worker), str(gone)
                if gone.begun or self._closed:
                    break
        return None, Verdict(None, reason)

    def _start(self) -> Worker:
        worker = Worker(self._reads)
        with self._lock:
            self._workers.add(worker)
            if self._closed:
                worker.stop()
        _say_once(sentence(worker.layers))
        return worker

    def _discard(self, worker: Worker | None) -> None:
        if worker is not None:
            with self._lock:
                self._workers.discard(worker)
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
