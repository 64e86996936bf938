"""One process of a run, as `ziphius run` starts it: how it begins, and how it puts its end."""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import signal
import sys
import threading
import traceback
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

from ziphius.recipe.ending import LOST_PEERS, memory_needed, out_of_memory, smaller_batches
from ziphius.recipe.run import run_recipe
from ziphius.recipe.schema import Recipe
from ziphius.recipe.screen import one_line
from ziphius.train.place import lost_peers
from ziphius.train.trainer import Interrupted


def main() -> None:
    """Entry of each process that `ziphius run` starts: the checked recipe comes by stdin, the last words go by a pipe.

    It ends without Python's own ending once all is written and closed: what native libraries still do in their threads
    and destructors then could turn a run that is done into a failed one (see train/place.py for one that did).
    """
    _die_with_parent()
    order = json.load(sys.stdin)
    if not order["debug"]:
        threading.excepthook = _leave_to_the_loop
    code, words = _obey(order)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    atexit._run_exitfuncs()
    if words:
        os.write(int(os.environ["ZIPHIUS_WORDS"]), words.encode()[:4096])
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(code)


def _obey(order: dict[str, Any]) -> tuple[int, str]:
    """The exit code, and what ended the run where it is not done."""
    recipe = Recipe(**order["recipe"])
    # Where oneDNN is short of memory, torch goes on with another matrix product, whose last bits are others.
    warnings.filterwarnings("error", message=".*mkldnn_matmul failed")
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _interrupt)
        run_recipe(recipe, Path(order["run"]), order["until"], order["control"], order["began"])
    except Interrupted as error:
        return 130, f"{error}; the same command goes on from there" if os.environ.get("RANK", "0") == "0" else ""
    except Exception as error:
        if order["debug"]:
            traceback.print_exc()
        if lost_peers(error):
            return LOST_PEERS, "another process of this run ended first, and says why"
        if type(error).__name__ == "OutOfMemoryError":  # torch's name for a device's, which the machine's does not help
            return 1, f"the memory of the GPU ran out: {smaller_batches()}"
        if out_of_memory(error):
            processes = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", "1")))
            return 1, f"memory ran out: {memory_needed(recipe, processes)}"
        return 1, one_line(error, Path(order["run"]))
    return 0, ""


def _leave_to_the_loop(failed: threading.ExceptHookArgs) -> None:
    """TensorBoard's thread hands what the disk refuses on to whoever writes next; its own traceback is one too many."""
    if not issubclass(failed.exc_type, OSError):
        threading.__excepthook__(failed)


def _interrupt(*_: object) -> None:
    """Asked to stop outside the training loop, which listens by itself."""
    raise Interrupted("stopped between the steps of a stage")


def _die_with_parent() -> None:
    """Without its supervisor a process would go on for ever, beside the next start of the same run."""
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.environ.get("ZIPHIUS_PARENT") not in (None, str(os.getppid())):  # it ended while this one loaded torch
        os._exit(LOST_PEERS)


if __name__ == "__main__":
    main()
