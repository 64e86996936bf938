"""How much memory a process may still take, and whether the kernel has ended one for want of it. Imports no torch."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path


def free_gib() -> float:
    """Memory that a process may still take, in GiB: the machine's, within the limits of its container and shell."""
    limit_of_shell = resource.getrlimit(resource.RLIMIT_AS)[0]  # it holds for each process by itself
    rooms = [*rooms_of_all(), *([limit_of_shell] if limit_of_shell != resource.RLIM_INFINITY else [])]
    return min(rooms, default=0.0) / 2**30


def bytes_read() -> int:
    """What this process has had read from disk since its start, pages of mapped files too (Linux; else 0)."""
    for line in _lines(Path("/proc/self/io")):
        if line.startswith("read_bytes:"):
            return int(line.split()[1])
    return 0


def oom_kills() -> int:
    """How many processes the kernel has ended since the start for want of memory (Linux; 0 where it does not say)."""
    for line in _lines(Path("/proc/vmstat")):
        if line.startswith("oom_kill "):
            return int(line.split()[1])
    return 0


def rooms_of_all() -> Iterator[float]:
    """Bytes that all processes together may still take: of the machine, and of its container."""
    for line in _lines(Path("/proc/meminfo")):
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024
            break
    else:
        yield os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    group = Path("/sys/fs/cgroup")
    for most, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        limit, taken = _lines(group / most), _lines(group / used)
        if limit and taken and limit[0].isdigit():
            yield max(0, int(limit[0]) - int(taken[0]))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
