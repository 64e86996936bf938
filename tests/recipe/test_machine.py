"""What a run's folder remembers of the machine: how many processes, and on which device."""

import pytest
import torch

from ziphius.recipe import run as running
from ziphius.recipe.schema import load_recipe
from ziphius.train.place import Place

from .conftest import read

CARD = Place(device=torch.device("cuda", 0))


@pytest.fixture
def settle(recipe, tmp_path, monkeypatch):
    """`settle(place)`: the place that goes on, and what is written."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H100")

    def no_trial(*_):
        raise AssertionError("GPUs need no trial")

    monkeypatch.setattr(running, "processes_are_faster", no_trial)

    def settled(place):
        checked = load_recipe(recipe, ["machine.processes=0", "machine.device=auto"])
        found, _ = running._settle_machine(checked, tmp_path, place)
        return found, read(tmp_path / "machine.json")

    return settled


def test_gpus_have_a_process_each_without_a_trial(settle, monkeypatch):
    monkeypatch.setattr(Place, "on_main", lambda place, work: work())  # the other rank is not there
    two = Place(0, 2, CARD.device)
    place, machine = settle(two)
    assert place == two
    assert (machine["device"], machine["gpu"], machine["processes"]) == ("cuda", "H100", 2)


def test_a_run_that_moves_to_another_device_says_so(settle, capsys):
    _, before = settle(Place())
    assert (before["device"], before["gpu"]) == ("cpu", None)
    assert capsys.readouterr().err == ""
    assert settle(CARD)[1]["device"] == "cuda"
    assert f"begun on {before['cpu']} with 1 processes, goes on on H100 with 1" in capsys.readouterr().err
    settle(CARD)
    assert capsys.readouterr().err == ""
    assert settle(Place())[0] == Place()
    assert "begun on H100 with 1 processes, goes on on cpu with 1" in capsys.readouterr().err
