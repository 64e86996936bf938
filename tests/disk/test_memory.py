from ziphius.disk import memory


def test_what_was_read_from_disk(monkeypatch):
    monkeypatch.setattr(memory, "_lines", lambda path: ["rchar: 7", "read_bytes: 4096", "write_bytes: 9"])
    assert memory.bytes_read() == 4096
    monkeypatch.setattr(memory, "_lines", lambda path: [])
    assert memory.bytes_read() == 0
