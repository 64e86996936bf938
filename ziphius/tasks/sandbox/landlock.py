"""Landlock: this process may read some folders, write one, and reach no TCP port and no other process.

Source: landlock(7); the kernel's include/uapi/linux/landlock.h. The numbers are the same on every architecture.
"""

import ctypes
import os
from collections.abc import Iterable
from pathlib import Path

from ziphius.tasks.sandbox.kernel import call

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
VERSION, PATH_BENEATH = 1, 1
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = (1 << bit for bit in range(4))
# what each version of the interface can forbid: from REMOVE_DIR to MAKE_SYM at first, then REFER, TRUNCATE, IOCTL_DEV
RIGHTS_OF = {1: 13, 2: 14, 3: 15, 5: 16}
TRUNCATE, IOCTL_DEV = 1 << 14, 1 << 15
TRUNCATE_SINCE = 3
FOR_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
TCP = 0b11  # bind and connect, from version 4
SCOPE = 0b11  # abstract sockets and signals to processes outside, from version 6


class Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("ports", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("rights", ctypes.c_uint64), ("folder", ctypes.c_int32))


def version() -> int:
    """The version of Landlock's interface; 0 where the kernel has none or it is switched off."""
    try:
        return call("syscall", CREATE_RULESET, None, 0, VERSION)
    except OSError:
        return 0


def restrict(readable: Iterable[Path], writable: Path) -> None:
    """Forbids this thread and those it starts all files but what lies under `readable` (to read) and `writable`, and
    starting any program. Paths that do not exist are skipped. `no_new_privs` must be set. Raises OSError."""
    given = version()
    handled = (1 << max(bits for since, bits in RIGHTS_OF.items() if since <= given)) - 1
    ruleset = Ruleset(handled, TCP if given >= 4 else 0, SCOPE if given >= 6 else 0)
    size = 24 if given >= 6 else 16 if given >= 4 else 8
    rules = call("syscall", CREATE_RULESET, ctypes.byref(ruleset), size, 0)
    try:
        for path in readable:
            _allow(rules, path, READ_FILE | READ_DIR)
        _allow(rules, writable, handled & ~(EXECUTE | IOCTL_DEV))
        call("syscall", RESTRICT_SELF, rules, 0)
    finally:
        os.close(rules)


def _allow(rules: int, path: Path, rights: int) -> None:
    try:
        folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        rule = Beneath(rights if path.is_dir() else rights & FOR_FILES, folder)
        call("syscall", ADD_RULE, rules, PATH_BENEATH, ctypes.byref(rule), 0)
    finally:
        os.close(folder)
