"""What is billed beside the results: lost time, replaced work, energy."""

import json

import pytest
import torch

from ziphius.cost.energy import Counter
from ziphius.cost.ledger import LedgerRow, append_row, read_abandoned
from ziphius.recipe import bills
from ziphius.recipe.bills import book_abandoned, lost_seconds, measured_energy, stage_energy
from ziphius.train.distributed import World
from ziphius.train.state import save_state


def steps(folder, *seconds):
    folder.mkdir(parents=True, exist_ok=True)
    rows = [json.dumps({"step": n, "seconds": s}) + "\n" for n, s in enumerate(seconds, start=1)]
    (folder / "metrics.jsonl").write_text("".join(rows))


def test_lost_time_is_what_was_logged_after_the_last_save_over_all_starts(tmp_path):
    assert lost_seconds(tmp_path / "new") == 0.0
    steps(tmp_path, 1.0, 2.0, 3.5)
    assert lost_seconds(tmp_path) == 3.5  # nothing saved yet
    save_state(tmp_path / "state", {"progress": {"step": 2, "seconds": 2.0}, "x": torch.zeros(1)})
    steps(tmp_path, 1.0, 2.0, 2.5)
    assert lost_seconds(tmp_path) == 4.0


def test_replaced_stages_are_booked_whether_finished_or_not(tmp_path):
    done, begun, empty = (tmp_path / "stages" / name for name in ("03-sft", "04-rl", "05-later"))
    done.mkdir(parents=True)
    append_row(done / "ledger.jsonl", LedgerRow("sft", "sft", 7200.0, tokens=9))
    append_row(done / "ledger.jsonl", LedgerRow("evaluate sft", "evaluation", 36.0))
    steps(begun, 2.0, 18.0)
    empty.mkdir()
    for stage in (done, begun, empty):
        book_abandoned(tmp_path, stage, 2.0, World())
    rows = [(row.name, row.kind, row.seconds, row.dollars) for row in read_abandoned(tmp_path)]
    assert rows == [
        ("sft (replaced)", "abandoned", 7200.0, 4.0),
        ("evaluate sft (replaced)", "abandoned", 36.0, 0.02),
        ("rl (replaced)", "abandoned", 18.0, 0.01),
    ]


@pytest.fixture
def counter(monkeypatch):
    """A machine whose one counter stands at `counter["joules"]`."""
    value = {"joules": 0.0}
    monkeypatch.setattr("ziphius.cost.energy.find_counters", lambda: [Counter("test", lambda: value["joules"])])
    return value


def test_energy_of_a_stage_that_was_stopped_and_went_on(tmp_path, counter):
    def stopped():
        with measured_energy(tmp_path, World()):
            counter["joules"] += 7.2e6
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    with measured_energy(tmp_path, World()) as meter:
        counter["joules"] += 3.6e6
    assert stage_energy(tmp_path, meter, resumed=True) == pytest.approx(3.0)


def test_energy_is_unknown_where_a_kill_left_no_figure(tmp_path, counter):
    with measured_energy(tmp_path, World()) as meter:
        counter["joules"] += 3.6e6
    assert stage_energy(tmp_path, meter, resumed=True) is None
    assert stage_energy(tmp_path, meter, resumed=False) == pytest.approx(1.0)


def test_bills_name_the_devices(monkeypatch):
    assert (bills.bill(World(), "a", "sft", 1.0).device, bills.bill(World(), "a", "sft", 1.0).devices) == ("cpu", 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "H100")
    row = bills.bill(World(rank=0, size=8), "a", "sft", 1.0)
    assert (row.device, row.devices) == ("H100", 8)
