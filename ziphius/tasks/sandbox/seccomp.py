"""A filter of system calls that the kernel applies to this process from now on, whatever it becomes.

Calls that reach the network, other processes or the kernel's insides fail with EPERM. The program is classic BPF;
source: seccomp(2) and the kernel's Documentation/userspace-api/seccomp_filter.rst.
"""

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterator

from ziphius.tasks.sandbox.kernel import call
from ziphius.tasks.sandbox.syscalls import BY_ARGUMENT, CALLS, CREATING, HIGHEST

MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column of the table, AUDIT_ARCH_…
SET_MODE_FILTER, ALL_THREADS = 1, 1
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
LOAD, EQUAL, GREATER, ANY_BIT, RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
ALLOW, FAIL = 0x7FFF0000, 0x00050000
CLONE_THREAD = 0x00010000
OPEN_TO_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
REFUSED, UNKNOWN = FAIL | errno.EPERM, FAIL | errno.ENOSYS  # ENOSYS: the C library falls back to the older call

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, operand


def restrict(writing: bool) -> None:
    """Applies the filter to all threads. writing: files may be opened for writing (where Landlock says which); else
    every way to change a file is refused. `no_new_privs` must be set. Raises OSError where the machine has no seccomp
    or is neither x86-64 nor ARM64."""
    if platform.machine() not in MACHINES:
        raise OSError(errno.ENOSYS, f"no table of system calls for {platform.machine()}")
    column, architecture = MACHINES[platform.machine()]
    code = [struct.pack("HBBI", *instruction) for instruction in _program(column, architecture, writing, os.getpid())]
    program = ctypes.create_string_buffer(b"".join(code))
    header = ctypes.create_string_buffer(struct.pack("HP", len(code), ctypes.addressof(program)))
    number = CALLS["seccomp"][column]
    assert number is not None
    call("syscall", number, SET_MODE_FILTER, ALL_THREADS, header)


def _program(column: int, architecture: int, writing: bool, own: int) -> Iterator[Instruction]:
    numbers = {name: number for name, row in CALLS.items() if (number := row[column]) is not None}
    yield from _load(ARCHITECTURE)
    yield from _unless(EQUAL, architecture, REFUSED)
    yield from _load(NUMBER)
    yield from _when(GREATER, HIGHEST, UNKNOWN)  # calls newer than the table, and x32's
    yield from _judged(numbers["clone"], 0, ANY_BIT, CLONE_THREAD)
    yield from _when(EQUAL, numbers["clone3"], UNKNOWN)  # its flags lie in memory, where no filter can look
    for signal in ("kill", "tgkill"):
        yield from _judged(numbers[signal], 0, EQUAL, own)
    yield from _judged(numbers["prlimit64"], 2, EQUAL, 0)  # no new limits
    if not writing:
        yield from _when(EQUAL, numbers["openat2"], UNKNOWN)
        for name, place in (("open", 1), ("openat", 2)):
            if name in numbers:
                yield from _judged(numbers[name], place, ANY_BIT, OPEN_TO_WRITE, wanted=False)
    spared = BY_ARGUMENT | (CREATING if writing else set())
    for name in (name for name in numbers if name not in spared):
        yield from _when(EQUAL, numbers[name], REFUSED)
    yield RETURN, 0, 0, ALLOW


def _load(offset: int) -> Iterator[Instruction]:
    yield LOAD, 0, 0, offset


def _when(test: int, value: int, result: int) -> Iterator[Instruction]:
    yield test, 0, 1, value
    yield RETURN, 0, 0, result


def _unless(test: int, value: int, result: int) -> Iterator[Instruction]:
    yield test, 1, 0, value
    yield RETURN, 0, 0, result


def _judged(number: int, place: int, test: int, value: int, wanted: bool = True) -> Iterator[Instruction]:
    """Call `number` only while its argument passes the test (or fails it, unless `wanted`)."""
    yield EQUAL, 0, 4, number
    yield from _load(ARGUMENTS + 8 * place)  # the lower half: no value tested here has an upper one
    yield from (_unless if wanted else _when)(test, value, REFUSED)
    yield from _load(NUMBER)
