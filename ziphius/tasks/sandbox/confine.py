"""A process gives up, for good, what judging an answer does not need.

Each layer holds where the machine offers it, and each alone stops most of what code that has broken out of a checker
could do: namespaces (no network, a small scratch disk of one's own), Landlock (files, TCP ports, signals to others),
seccomp (network, other processes, the kernel's insides) and limits of memory, file sizes and open files.
"""

import os
import resource
import sys
import sysconfig
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ziphius.tasks.sandbox import landlock, namespaces, seccomp
from ziphius.tasks.sandbox.kernel import call

FILE_BYTES, OPEN_FILES = 16 << 20, 64
PDEATHSIG, NO_NEW_PRIVS, SIGKILL = 1, 38, 9
# what programs in general read; what this Python reads is asked of itself
SYSTEM_FILES = ("/usr", "/lib", "/lib64", "/nix/store", "/etc/ld.so.cache", "/etc/localtime", "/dev/null", "/dev/zero",
                "/dev/random", "/dev/urandom")  # fmt: skip

Layers = dict[str, Any]


def confine(scratch: Path, readable: Iterable[Path], memory_bytes: int) -> Layers:
    """Confines this process: to be called while it has one thread, since Landlock and namespaces hold for a thread and
    those it starts. From then on it reads Python's own folders and `readable`, writes at most `scratch`, and dies with
    the thread that started it.

    Returns what the machine gave, for `sentence`: `namespaces` and `seccomp` (whether), `landlock` (its version or 0)
    and `scratch` (whether that can be written at all).
    """
    landlock_version = landlock.version()
    writing = landlock_version >= landlock.TRUNCATE_SINCE  # else nobody says which files: then none
    layers: Layers = {
        "namespaces": _held(lambda: namespaces.enter(scratch)),
        "landlock": landlock_version,
        "seccomp": False,
        "scratch": writing,
    }
    os.chdir(scratch)  # anew, since a file system may have been mounted there
    with suppress(OSError):
        call("prctl", PDEATHSIG, SIGKILL, 0, 0, 0)  # after the namespaces, which make the kernel forget it
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_AS, memory_bytes)
    _limit(resource.RLIMIT_NOFILE, OPEN_FILES)
    _limit(resource.RLIMIT_FSIZE, FILE_BYTES if writing else 0)
    if _held(lambda: call("prctl", NO_NEW_PRIVS, 1, 0, 0, 0)):
        folders = [*map(Path, SYSTEM_FILES), *_python_folders(), *readable]
        if landlock_version and not _held(lambda: landlock.restrict(folders, scratch)):
            layers |= {"landlock": 0, "scratch": False}
        layers["seccomp"] = _held(lambda: seccomp.restrict(layers["scratch"]))
    if not layers["seccomp"]:
        _limit(resource.RLIMIT_NPROC, 0)  # no processes, and no threads either; it does not bind root
    return layers


def sentence(layers: Layers) -> str:
    """What the machine gives, for people."""
    names = {
        "namespaces": "namespaces (no network)",
        "landlock": f"Landlock {layers['landlock']} (no files)",
        "seccomp": "seccomp (no system calls beyond its own business)",
    }
    held = [text for layer, text in names.items() if layers[layer]]
    missing = [layer for layer in names if not layers[layer]]
    lacks = f"; this machine offers no {' and no '.join(missing)}" if missing else ""
    return f"answers are judged in processes confined by {', '.join([*held, 'limits of time and memory'])}{lacks}"


def _held(layer: Callable[[], object]) -> bool:
    try:
        layer()
    except OSError:
        return False
    return True


def _limit(kind: int, value: int) -> None:
    """At most `value`, or what it is now where that is less."""
    _, hard = resource.getrlimit(kind)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    with suppress(OSError, ValueError):  # macOS knows no limit of memory
        resource.setrlimit(kind, (value, value))


def _python_folders() -> list[Path]:
    """Where this interpreter and the packages it may still import lie."""
    known = [*sys.path, *sysconfig.get_paths().values(), sys.prefix, sys.base_prefix, sys.exec_prefix]
    return [Path(os.path.realpath(entry)) for entry in known if entry]
