"""Starting the processes of a run: the same environment that torchrun would give them. Imports no torch."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ziphius.disk.memory import oom_kills
from ziphius.ledger.folder import read_json
from ziphius.recipe.ending import LOST_PEERS, exited, killed, refuse_too_many
from ziphius.recipe.gpus import count_gpus
from ziphius.recipe.lock import Lock
from ziphius.recipe.schema import Recipe, RecipeError

_GRACE_SECONDS = 60.0  # for the others of one that was asked to stop, to save and to end
_MOMENT_SECONDS = 3.0  # for the others of one that failed
_COMMAND = [sys.executable, "-m", "ziphius.recipe.process"]


def launch(
    recipe: Recipe,
    run: Path,
    until: str | None,
    control: bool,
    debug: bool = False,
    count_gpus: Callable[[], int] = count_gpus,
) -> int:
    """Run `recipe` in the folder `run` and return the exit code; 130 where it was asked to stop.

    Under torchrun (its environment is set) this process joins; otherwise it starts one process a GPU (`count_gpus` says
    how many there are), or one per core, or as many as the recipe's `machine.processes` says, and passes SIGTERM and
    Ctrl-C on to them. What ended a process that did not end well is said on stderr.
    """
    began = time.time()
    if os.environ.get("RANK", "0") == "0":
        _refuse_if_locked(run)
    order = {
        "recipe": recipe.model_dump(mode="json"),
        "run": str(run),
        "until": until,
        "control": control,
        "debug": debug,
        "began": began,
    }
    environments = [dict(os.environ)]
    if "WORLD_SIZE" not in os.environ:
        count = _process_count(recipe, run, count_gpus)
        refuse_too_many(recipe, count)
        environments = _environments(count, dict(os.environ))
    kills = oom_kills()
    workers = _supervise(environments, json.dumps(order).encode())
    for line in _last_words(workers, recipe, by_kernel=oom_kills() > kills):
        print(f"ziphius: {line}", file=sys.stderr, flush=True)
    failed = [worker.code for worker in workers if worker.code and not worker.given_up]
    code = next((code for code in failed if code != LOST_PEERS), 1 if failed else 0)
    return 128 - code if code < 0 else code  # as a shell counts a process that a signal ended


def _refuse_if_locked(run: Path) -> None:
    """Say in a blink what the process of rank 0, which then holds the lock, would say after loading torch."""
    lock = Lock(run)
    if refusal := lock.take():
        raise RecipeError(refusal)
    lock.release()


class _Worker:
    """One process of the run: the order goes in by its stdin, a sentence on its end comes out by a pipe."""

    def __init__(self, environment: dict[str, str], order: bytes) -> None:
        self.rank = int(environment.get("RANK", "0"))
        self.given_up = False  # killed from here, because of another's end
        self.asked = False  # sent SIGTERM from here, to stop
        self._words, end = os.pipe()
        os.set_blocking(self._words, False)
        try:
            self.process = subprocess.Popen(
                _COMMAND,
                env=environment | {"ZIPHIUS_WORDS": str(end), "ZIPHIUS_PARENT": str(os.getpid())},
                stdin=subprocess.PIPE,
                pass_fds=(end,),
                start_new_session=True,  # Ctrl-C reaches it once, through here
            )
        finally:
            os.close(end)
        assert self.process.stdin is not None
        with suppress(BrokenPipeError), self.process.stdin as stdin:
            stdin.write(order)

    @property
    def code(self) -> int | None:
        """How it ended, None while it runs; 130 where it was asked to stop, also before it listened."""
        code = self.process.poll()
        return 130 if self.asked and code == -signal.SIGTERM else code

    def stop(self) -> None:
        """By SIGTERM, also on Ctrl-C: a process that does not listen yet would answer SIGINT with a traceback."""
        if self.code is None:
            self.asked = True
            self.process.terminate()

    def give_up(self) -> None:
        if self.code is None:
            self.given_up = True
            self.process.kill()

    def words(self) -> str:
        """What it said of its end."""
        with suppress(BlockingIOError):
            return os.read(self._words, 1 << 16).decode()
        return ""


def _last_words(workers: list[_Worker], recipe: Recipe, by_kernel: bool) -> list[str]:
    """What ended the run, each sentence once; that of processes which only lost the others where there is no other."""
    said: dict[str, int] = {}
    by_signal: dict[int, list[int]] = {}
    lost: dict[str, int] = {}
    local = int(os.environ.get("LOCAL_WORLD_SIZE", len(workers)))
    for worker in workers:
        if not worker.code or worker.given_up:
            continue
        if worker.code < 0:
            by_signal.setdefault(-worker.code, []).append(worker.rank)
        elif (words := worker.words()) or worker.code != 130:
            into = lost if worker.code == LOST_PEERS else said
            into.setdefault(words or exited(worker.rank, worker.code), worker.rank if words else 0)
    for number, ranks in by_signal.items():
        said[killed(ranks, number, recipe, local, by_kernel)] = 0
    return [f"rank {rank}: {line}" if rank else line for line, rank in (said or lost).items()]


def _process_count(recipe: Recipe, run: Path, count_gpus: Callable[[], int]) -> int:
    """As many as the recipe asks for, or an earlier start of this run settled on, or one a GPU, or one a core up to 8
    to be tried; one for a network from a folder, which is large more often than not. Raises RecipeError for more than
    there are GPUs."""
    device, asked = recipe.machine.device, recipe.machine.processes
    gpus = 0 if device == "cpu" else count_gpus()
    if gpus or device not in ("auto", "cpu"):
        return _one_a_gpu(device, asked, gpus)
    settled = None if asked else read_json(run / "machine.json")
    if settled is not None and settled.get("device", "cpu") == "cpu":
        return int(settled["processes"])
    return asked or (1 if recipe.model.from_ is not None else min(os.cpu_count() or 1, 8))


def _one_a_gpu(device: str, asked: int, gpus: int) -> int:
    """How many processes share `gpus` GPUs, `asked` of them where that is not 0."""
    number = int(device.partition(":")[2] or 0)
    if number >= gpus:
        raise RecipeError(
            f"machine.device is {device!r}, but torch sees {gpus} GPUs here; use auto, or install a CUDA build of it"
        )
    room = 1 if ":" in device else gpus
    if asked > room:
        raise RecipeError(
            f"machine.processes is {asked}, but there is one process a GPU and {device!r} has {room} here; lower it to "
            f"{room}, leave it out, set machine.device to 'cpu', or let torchrun start it on several machines"
        )
    return asked or room


def _environments(count: int, environment: dict[str, str]) -> list[dict[str, str]]:
    """What torchrun would set for each of `count` processes on this machine."""
    threads = max(1, (os.cpu_count() or 1) // count)
    environment = environment | {"OMP_NUM_THREADS": str(threads), "WORLD_SIZE": str(count)}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    if sys.platform == "linux":
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    return [environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def _supervise(environments: list[dict[str, str]], order: bytes) -> list[_Worker]:
    """Start one process for each environment, pass signals on to them, and wait for all."""
    workers: list[_Worker] = []

    def pass_on(*_: object) -> None:
        for worker in workers:
            worker.stop()

    old = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        for environment in environments:
            workers.append(_Worker(environment, order))
        _wait(workers)
        return workers
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _wait(workers: list[_Worker]) -> None:
    """Wait for all; when one fails, give the others a moment and end them."""
    deadline = float("inf")
    while any(worker.code is None for worker in workers):
        time.sleep(0.05)
        failed = next((worker.code for worker in workers if worker.code), 0)
        if failed and deadline == float("inf"):
            deadline = time.monotonic() + (_GRACE_SECONDS if failed == 130 else _MOMENT_SECONDS)
        if time.monotonic() > deadline:
            for worker in workers:
                worker.give_up()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
