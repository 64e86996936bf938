"""Where a process computes: its device among others', and the group, which once left is gone."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ziphius
from ziphius.train import place as places
from ziphius.train.place import Place, join, lost_peers

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


# --- devices ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def on_gpus(monkeypatch):
    """`on_gpus(2, size=2, local_rank=1)`: a process as it would find itself on a machine with two GPUs."""
    told = {}

    def find(gpus, size=1, local_rank=0):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: told.update(device=device))
        monkeypatch.setattr(places.dist, "init_process_group", lambda backend, timeout: told.update(group=backend))
        for key, value in (("WORLD_SIZE", size), ("RANK", local_rank), ("LOCAL_RANK", local_rank)):
            monkeypatch.setenv(key, str(value))
        return told

    return find


@pytest.mark.parametrize(
    ("gpus", "size", "rank", "name", "device", "group"),
    [
        (0, 1, 0, "auto", "cpu", None),
        (0, 2, 1, "auto", "cpu", "gloo"),
        (1, 1, 0, "auto", "cuda:0", None),
        (2, 2, 1, "auto", "cuda:1", "cpu:gloo,cuda:nccl"),
        (2, 2, 1, "cuda", "cuda:1", "cpu:gloo,cuda:nccl"),
        (2, 1, 0, "cuda:1", "cuda:1", None),
        (2, 2, 0, "cpu", "cpu", "gloo"),
    ],
)
def test_every_process_has_a_device_of_its_own(on_gpus, gpus, size, rank, name, device, group):
    told = on_gpus(gpus, size, rank)
    assert join(name) == Place(rank, size, torch.device(device))
    assert told.get("group") == group
    assert told.get("device") == (None if device == "cpu" else torch.device(device))


@pytest.mark.parametrize(
    ("gpus", "size", "rank", "name", "said"),
    [
        (0, 1, 0, "cuda", "torch sees 0 GPUs here"),
        (
            2,
            3,
            2,
            "cuda",
            "process 3 on this machine finds 2 GPUs, one a process; start 2, or set machine.device",
        ),
        (2, 2, 0, "cuda:1", "device 'cuda:1' has room for one process of 2; name it 'cuda' for one a GPU"),
    ],
)
def test_a_process_without_a_device(on_gpus, gpus, size, rank, name, said):
    on_gpus(gpus, size, rank)
    with pytest.raises(ValueError, match=re.escape(said)):
        join(name)


def test_a_gpu_is_named_waited_for_and_measured(monkeypatch):
    asked = []
    place = Place(device=torch.device("cuda", 1))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {device.index}")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 << 30)
    monkeypatch.setattr(torch.cuda, "synchronize", asked.append)
    place.wait()
    assert (place.device_name, place.peak_memory_gib(), asked) == ("card 1", 3.0, [place.device])
    assert (Place().device_name, Place().on_gpu) == ("cpu", False)
    assert 0.05 < Place().peak_memory_gib() < 100  # this process


def test_the_precision_of_a_place():
    a = torch.ones(2, 2)
    with Place().computing("bf16").autocast():
        assert (a @ a).dtype == torch.bfloat16
    with Place().computing("fp32").autocast():
        assert (a @ a).dtype == torch.float32


def test_nobody_else_asks_what_hardware_there_is():
    """`torch.cuda` stands in the place, where graphs are recorded, in what GPUs run and where a device is named."""
    root = Path(ziphius.__file__).parent
    asking = {str(path.relative_to(root)) for path in root.rglob("*.py") if "torch.cuda" in path.read_text()}
    asking -= {name for name in asking if name.startswith("ops/triton/")}
    assert asking <= {
        "train/place.py",
        "engine/graphs.py",
        "checkpoint/device.py",
        "recipe/gpus.py",
        "ops/sorted_experts.py",
    }
