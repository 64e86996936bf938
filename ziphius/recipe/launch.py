"""Starting the processes of a run: the same environment that torchrun would give them. Imports no torch."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ziphius.recipe.lock import Lock
from ziphius.recipe.schema import Recipe, RecipeError

_GRACE_SECONDS = 60.0


def launch(recipe: Recipe, run: Path, until: str | None, control: bool, debug: bool = False) -> int:
    """Run `recipe` in the folder `run` and return the exit code; 130 where it was asked to stop.

    Under torchrun (its environment is set) this process joins; otherwise it starts one process per core, or as many
    as the recipe's `machine.processes` says, and passes SIGTERM and Ctrl-C on to them.
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
    with tempfile.NamedTemporaryFile("w", suffix=".json", prefix="ziphius-", delete=False) as file:
        json.dump(order, file)
    environment = os.environ | {"ZIPHIUS_RUN": file.name}
    try:
        if "WORLD_SIZE" in os.environ:
            return _supervise([environment])
        return _supervise(_environments(_process_count(recipe, run), environment))
    finally:
        os.unlink(file.name)


def _refuse_if_locked(run: Path) -> None:
    """Say in a blink what the process of rank 0, which then holds the lock, would say after loading torch."""
    lock = Lock(run)
    if refusal := lock.take():
        raise RecipeError(refusal)
    lock.release()


def _process_count(recipe: Recipe, run: Path) -> int:
    """As many as the recipe asks for, or an earlier start of this run settled on, or one a core up to 8 to be tried."""
    settled = run / "machine.json"
    if settled.exists() and not recipe.machine.processes:
        return int(json.loads(settled.read_text())["processes"])
    return recipe.machine.processes or min(os.cpu_count() or 1, 8)


def _environments(count: int, environment: dict[str, str]) -> list[dict[str, str]]:
    """What torchrun would set for each of `count` processes on this machine."""
    threads = max(1, (os.cpu_count() or 1) // count)
    environment = environment | {"OMP_NUM_THREADS": str(threads), "WORLD_SIZE": str(count)}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    if sys.platform == "linux":
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    return [environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def _supervise(environments: list[dict[str, str]]) -> int:
    """Start one process for each environment, pass signals on to them, and wait."""
    workers: list[subprocess.Popen] = []

    def pass_on(number: int, _: object) -> None:
        for worker in workers:
            if worker.poll() is None:
                worker.send_signal(number)

    old = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        for environment in environments:  # in a session of their own: Ctrl-C reaches them once, through here
            command = [sys.executable, "-m", "ziphius.recipe.run"]
            workers.append(subprocess.Popen(command, env=environment, start_new_session=True))
        return _wait(workers)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _wait(workers: list[subprocess.Popen]) -> int:
    """Wait for all; when one fails, give the others a moment and end them. The first failure's code is returned."""
    failed = 0
    deadline = float("inf")
    while any(worker.poll() is None for worker in workers):
        time.sleep(0.05)
        codes = [worker.poll() for worker in workers]
        if not failed and any(codes):
            failed = next(code for code in codes if code)
            deadline = time.monotonic() + (_GRACE_SECONDS if failed == 130 else 3.0)
        if time.monotonic() > deadline:
            for worker in workers:
                worker.kill()
    failed = failed or next((worker.returncode for worker in workers if worker.returncode), 0)
    return 128 - failed if failed < 0 else failed  # as a shell counts a process that a signal ended


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
