import json

import pytest

from ziphius.disk.errors import DiskError
from ziphius.ledger.clock import WAITING, Clock, last_start, time_spent

MACHINE = {"device": "H100", "devices": 2, "dollars_per_hour": 4.0}


def test_every_second_of_a_start_is_somebodys(tmp_path):
    clock = Clock(tmp_path, MACHINE, began=1000.0)
    with pytest.raises(KeyError), clock.during("rl"):
        raise KeyError
    with clock.during("rl"):
        pass
    clock.close()
    spent = time_spent(tmp_path)
    assert set(spent) == {WAITING, "rl"}
    (start,) = (tmp_path / "time").iterdir()
    told = json.loads(start.read_text())
    assert sum(seconds for _, seconds in told["spans"]) == pytest.approx(told["since"] - 1000.0)
    assert last_start(tmp_path) == MACHINE


def test_a_disk_that_refuses_the_clock_hides_no_error_of_the_work(tmp_path, monkeypatch):
    def refuse(*_):
        raise DiskError("full")

    clock = Clock(tmp_path, MACHINE)
    busy = clock.during("rl")
    busy.__enter__()
    monkeypatch.setattr("ziphius.ledger.clock.write_json", refuse)
    assert not busy.__exit__(KeyError, KeyError("work"), None)  # the error goes on as it came
    with pytest.raises(DiskError), clock.during("rl"):
        pass
    clock.close()


def test_a_start_that_was_killed_was_busy_until_its_last_sign_of_life(tmp_path):
    clock = Clock(tmp_path, MACHINE)
    busy = clock.during("rl")
    busy.__enter__()
    clock._stopped.set()  # as a kill does, it ends the signs of life
    (start,) = (tmp_path / "time").iterdir()
    since = json.loads(start.read_text())["since"]
    start.with_suffix(".alive").write_text(str(since + 40))
    assert time_spent(tmp_path)["rl"] == pytest.approx(40, abs=0.01)
    second = Clock(tmp_path, MACHINE)
    second.close()
    assert time_spent(tmp_path)["rl"] == pytest.approx(40, abs=0.01)


def test_other_ranks_write_nothing(tmp_path):
    clock = Clock(None, MACHINE)
    with clock.during("rl"):
        pass
    clock.close()
    assert list(tmp_path.iterdir()) == []
    assert (time_spent(tmp_path), last_start(tmp_path)) == ({}, None)
