"""How the processes of a run end, in sentences: what ended one, and how much memory was needed. Imports no torch."""

from __future__ import annotations

import errno
import signal

from ziphius.disk.memory import free_gib, rooms_of_all
from ziphius.recipe.memory import LIBRARIES_GIB
from ziphius.recipe.plan import memory_gib
from ziphius.recipe.schema import Recipe, RecipeError

LOST_PEERS = 75  # the exit code of a process that ended because another had: it has nothing to say of its own
_AGAIN = "run the same command again: it goes on from its last save"
_SMALLER = "a smaller micro_rows or micro_tokens, with which the stage begins anew"
_NO_MEMORY = (  # as torch's allocator, oneDNN, C++ and the system's threads say it
    "can't allocate memory",
    "could not create a primitive",
    "bad_alloc",
    "can't start new thread",
    "Resource temporarily unavailable",
)
_FAULTS = (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT, signal.SIGSYS)


def killed(ranks: list[int], number: int, recipe: Recipe, processes: int, by_kernel: bool) -> str:
    """What to say of the processes `ranks`, of `processes` in all, that the signal `number` ended.

    `by_kernel`: the kernel has ended a process for want of memory while this one ran (see `oom_kills`).
    """
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    names = " and ".join(filter(None, [", ".join(map(str, ranks[:-1])), str(ranks[-1])]))
    what = f"rank {names} was ended by {name}" if len(ranks) == 1 else f"ranks {names} were ended by {name}"
    if number == signal.SIGKILL:
        who = "the kernel's out-of-memory killer" if by_kernel else "someone's kill, or a limit on memory"
        return f"{what} ({who}): {memory_needed(recipe, processes)}"
    if number in _FAULTS:
        return f"{what}, a fault in native code, or memory or shared memory (/dev/shm) that ran out: " + memory_needed(
            recipe, processes
        )
    return f"{what}: {_AGAIN}"


def exited(rank: int, code: int) -> str:
    """What to say of a process that ended with `code` and without a word."""
    return f"rank {rank} ended with code {code} and without a word: {_AGAIN}; with --debug it shows more"


def memory_needed(recipe: Recipe, processes: int) -> str:
    """How much memory this run needs and what is free, with the mend."""
    need = memory_gib(recipe)
    fewer = "fewer processes (--set machine.processes=1) or " if processes > 1 else ""
    each = f"{need:.2g} GiB in each of {processes} processes" if processes > 1 else f"{need:.2g} GiB"
    free = f"{free_gib():.2g} GiB are free"
    return f"this run needs about {each}, and {free}; make room and {_AGAIN}, or use {fewer}{_SMALLER}"


def smaller_batches() -> str:
    """The mend where the memory of a GPU ran out."""
    return f"use {_SMALLER}; a GPU that others leave alone has more room"


def refuse_too_many(recipe: Recipe, processes: int) -> None:
    """Raise RecipeError where the memory that is free does not even hold the libraries of so many processes."""
    if processes > 1 and processes * LIBRARIES_GIB * 2**30 > min(rooms_of_all(), default=0.0):
        raise RecipeError(f"{processes} processes are too many here: {memory_needed(recipe, processes)}")


def out_of_memory(error: BaseException) -> bool:
    """Whether `error` is Python's, torch's or the system's way to say that there is no more memory."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or (isinstance(error, (RuntimeError, UserWarning)) and any(sign in str(error) for sign in _NO_MEMORY))
    )
