"""A user, mount, network and IPC namespace of one's own: no network card but a dead loopback, and a small scratch disk.

Source: user_namespaces(7). Many machines offer it to every user; containers often refuse.
"""

import os
from pathlib import Path

from ziphius.tasks.sandbox.kernel import call

NEWNS, NEWIPC, NEWUSER, NEWNET = 0x00020000, 0x08000000, 0x10000000, 0x40000000
NOSUID, NODEV, NOEXEC = 0x2, 0x4, 0x8
SCRATCH = b"size=64m,nr_inodes=4096,mode=700"


def enter(scratch: Path) -> None:
    """Moves this process (of one thread) into fresh namespaces and mounts a bounded file system in memory on `scratch`,
    which nobody else sees and which vanishes with the process. Raises OSError where the machine refuses."""
    uid, gid = os.geteuid(), os.getegid()
    call("unshare", NEWUSER | NEWNS | NEWNET | NEWIPC)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    call("mount", b"tmpfs", os.fsencode(scratch), b"tmpfs", NOSUID | NODEV | NOEXEC, SCRATCH)
