"""What a stage is billed for beside its time: devices and energy."""

import pytest
import torch

from ziphius.cost.energy import Counter
from ziphius.recipe import bills
from ziphius.recipe.bills import measured_energy, stage_energy
from ziphius.train.place import Place


@pytest.fixture
def counter(monkeypatch):
    """A machine whose one counter stands at `counter["joules"]`."""
    value = {"joules": 0.0}
    monkeypatch.setattr("ziphius.cost.energy.find_counters", lambda: [Counter("test", lambda: value["joules"])])
    return value


def test_energy_of_a_stage_that_was_stopped_and_went_on(tmp_path, counter):
    def stopped():
        with measured_energy(tmp_path, Place()):
            counter["joules"] += 7.2e6
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    with measured_energy(tmp_path, Place()) as meter:
        counter["joules"] += 3.6e6
    assert stage_energy(tmp_path, meter, resumed=True) == pytest.approx(3.0)


def test_energy_is_unknown_where_a_kill_left_no_figure(tmp_path, counter):
    with measured_energy(tmp_path, Place()) as meter:
        counter["joules"] += 3.6e6
    assert stage_energy(tmp_path, meter, resumed=True) is None
    assert stage_energy(tmp_path, meter, resumed=False) == pytest.approx(1.0)


def test_bills_name_the_devices(monkeypatch):
    assert (bills.bill(Place(), "a", "sft", 1.0).device, bills.bill(Place(), "a", "sft", 1.0).devices) == ("cpu", 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H100")
    row = bills.bill(Place(0, 8, torch.device("cuda", 0)), "a", "sft", 1.0)
    assert (row.device, row.devices) == ("H100", 8)
