"""A group that is left is gone: no thread of it is there to touch Python while Python ends."""

import subprocess
import sys

import pytest

from ziphius.train.place import Place, lost_peers

LEAVE = """
import os
from pathlib import Path
import torch, torch.distributed as dist
from ziphius.train.place import leave
names = lambda: [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
import torch._dynamo  # as torch does by itself in the midst of a run
dist.all_reduce(torch.ones(3))
print(sum("gloo" in name for name in names()))
leave()
print(sum("gloo" in name for name in names()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_leaving_ends_the_threads_of_the_group():
    """What torch loads after the group was made must not keep it: that ended finished runs with code 134."""
    done = subprocess.run([sys.executable, "-c", LEAVE], capture_output=True, text=True, check=True, timeout=60)
    before, after = map(int, done.stdout.split())
    assert before > 0
    assert after == 0


def test_work_on_rank_0_fails_as_itself():
    def fail():
        raise ValueError("no")

    assert Place().on_main(lambda: 5) == 5
    with pytest.raises(ValueError, match="no"):
        Place().on_main(fail)


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("[/x/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:3511"), True),
        (RuntimeError("[/x/gloo/transport/tcp/pair.cc:553] Read error: Connection reset by peer"), True),
        (RuntimeError("[enforce fail] Connection closed"), False),
        (RuntimeError("gloo: shapes differ"), False),
        (ConnectionResetError("Connection reset by peer"), False),
    ],
)
def test_a_lost_peer_is_told_from_a_mistake(error, lost):
    assert lost_peers(error) == lost
