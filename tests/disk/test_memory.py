import pytest

from ziphius.disk import memory


def test_what_was_read_from_disk(monkeypatch):
    monkeypatch.setattr(memory, "_lines", lambda path: ["rchar: 7", "read_bytes: 4096", "write_bytes: 9"])
    assert memory.bytes_read() == 4096
    monkeypatch.setattr(memory, "_lines", lambda path: [])
    assert memory.bytes_read() == 0


@pytest.mark.parametrize(
    ("most", "used", "total"),
    [
        ("memory.max", "memory.current", ""),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_"),
    ],
)
def test_files_that_were_read_leave_a_container_its_room(monkeypatch, most, used, total):
    stat = ["inactive_file 1", "active_file 1"] * bool(total) + [f"{total}inactive_file 300", f"{total}active_file 200"]
    files = {most: ["1000"], used: ["900"], used.rpartition("memory")[0] + "memory.stat": ["anon 400", *stat]}
    lines = {f"/sys/fs/cgroup/{name}": content for name, content in files.items()}
    monkeypatch.setattr(memory, "_lines", lambda path: lines.get(str(path), ["MemAvailable: 8 kB"]))
    assert [*memory.rooms_of_all()] == [8192, 600]
    lines[f"/sys/fs/cgroup/{most}"] = ["max"]
    assert [*memory.rooms_of_all()] == [8192]
