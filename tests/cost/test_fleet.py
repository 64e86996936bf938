import json
import re
from datetime import date

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ziphius.cost.fleet import FleetError, bills, example_text, load_fleet, months, total
from ziphius.cost.fleet_screen import fleet_json, show_fleet, write_fleet_page

FLEET = """
name = "small"
years = 2

[sites.here]
dollars_per_kwh = 0.10
pue = 1.2
draw = 0.5
hosting_dollars_per_kw_month = 100
people_dollars_per_year = 3000
facility_dollars_per_kw = 1000

[[gpus]]
type = "h100"
site = "here"
count = 8
chip_dollars = { point = 25_000, low = 20_000, high = 30_000 }
server_dollars = 5_000
network_dollars = 2_000
kilowatts = 1.0

[[gpus]]
type = "h20"
site = "here"
count = 4
since = 2025-02-15
chip_dollars = 10_000
kilowatts = 0.5

[[jobs]]
name = "a model"
kind = "training"
gpu = "h100"
gpu_hours = 2_976
from = 2025-01-01
to = 2025-01-31

[[jobs]]
name = "answers"
kind = "serving"
gpu = "h20"
gpus = 4
from = 2025-02-15
to = 2025-03-16
"""


@pytest.fixture
def load(tmp_path):
    def made(text=FLEET):
        path = tmp_path / "fleet.toml"
        path.write_text(text)
        return load_fleet(path)

    return made


def test_the_estimate_of_60000_gpus_comes_out_of_its_parts():
    """SemiAnalysis, corrected totals: $1.6 billion of servers, $944 million of operations, $643 million a year."""
    whole = total(bills(load_fleet()))
    assert whole.count == 60_000
    assert whole.capex.point == pytest.approx(1_629e6, rel=0.005)
    assert whole.opex.point == pytest.approx(944e6, rel=0.002)
    assert whole.tco.point == pytest.approx(2_573e6, rel=0.005)
    assert whole.tco.point / 4 == pytest.approx(640e6, rel=0.02)
    assert whole.dollars_per_gpu_hour().point == pytest.approx(1.22, abs=0.005)


def test_the_same_without_the_oldest_gpus():
    """The estimate's totals for the 50,000 Hopper GPUs alone: $1.4 billion, $545 million a year."""
    hopper = total([bill for bill in bills(load_fleet()) if bill.name != "a100"])
    assert hopper.capex.point == pytest.approx(1.4e9, rel=0.01)
    assert hopper.tco.point / 4 == pytest.approx(545e6, rel=0.01)


@pytest.mark.parametrize(("gpu", "capex", "opex", "hourly"), [
    ("a100", 237, 157, 1.12), ("h20", 727, 387, 1.06), ("h800", 317, 170, 1.39), ("h100", 347, 230, 1.65),
])  # fmt: skip
def test_rows_of_the_estimate(gpu, capex, opex, hourly):
    """Second-hand rows: two rates per kilowatt explain all four rows of operations to 5%."""
    (bill,) = [bill for bill in bills(load_fleet()) if bill.name == gpu]
    assert bill.capex.point / 1e6 == pytest.approx(capex, abs=0.6)
    assert bill.opex.point / 1e6 == pytest.approx(opex, rel=0.05)
    assert bill.dollars_per_gpu_hour().point == pytest.approx(hourly, rel=0.02)


def test_bills_by_hand(load):
    h100, h20 = bills(load())
    assert h100.capex.point == 8 * 32_000 + 8 * 1000
    assert (h100.capex.low, h100.capex.high) == (h100.capex.point - 40_000, h100.capex.point + 40_000)
    assert h100.energy.point == pytest.approx(8 * 0.5 * 1.2 * 8766 * 2 * 0.10)
    assert h100.hosting.point == 8 * 100 * 24
    assert (h100.people.point, h20.people.point) == pytest.approx((6000 * 8 / 10, 6000 * 2 / 10))
    assert h100.dollars_per_gpu_hour().point == pytest.approx(h100.tco.point / (8 * 8766 * 2))
    assert h100.dollars_per_gpu_hour(0.5).point == pytest.approx(2 * h100.dollars_per_gpu_hour().point)


def test_the_calendar(load):
    january, february, march = months(load())
    assert january.first == date(2025, 1, 1)
    assert january.capacity == {"h100": 8 * 24 * 31, "h20": 0}
    assert january.share("training") == pytest.approx(0.5)
    assert february.capacity["h20"] == 4 * 24 * 14
    assert february.used == {"a model": 0.0, "answers": 4 * 24 * 14}
    assert march.used["answers"] == 4 * 24 * 16
    assert march.free == pytest.approx(1 - 16 / 31 * 4 / 12)
    assert not any(month.overbooked for month in (january, february, march))


def test_a_job_that_asks_for_more_than_there_is(load, capsys):
    fleet = load(FLEET.replace("gpus = 4\n", "gpus = 10\n"))
    february, march = months(fleet)[1:]
    assert february.overbooked == {"h20": pytest.approx(2.5)}
    assert march.overbooked == {"h20": pytest.approx(10 * 16 / (4 * 31))}
    show_fleet(fleet, [1.0])
    assert "in 2025-02 the jobs on h20 ask for 2.50 times what there is" in capsys.readouterr().out


def test_depreciation(load):
    straight = load().depreciation
    assert [straight.value(age) for age in (0, 1, 4, 9)] == [1.0, 0.75, 0.0, 0.0]
    declining = load(FLEET + '[depreciation]\nmethod = "declining"\nrate = 0.5\n').depreciation
    assert [declining.value(age) for age in (0, 1, 2)] == [1.0, 0.5, 0.25]
    assert load(FLEET + "[depreciation]\nresidual = 0.2\nyears = 2\n").depreciation.value(1) == pytest.approx(0.6)


@settings(max_examples=30, deadline=None)
@given(by=st.floats(1.0, 20.0), key=st.sampled_from(["chip_dollars", "server_dollars", "network_dollars"]))
def test_cost_is_linear_in_prices_and_intervals_hold_the_point(by, key):
    fleet = load_fleet()
    group = fleet.gpus[0]
    dearer = fleet.model_copy(
        update={"gpus": [group.model_copy(update={key: getattr(group, key).scaled(by)}), *fleet.gpus[1:]]}
    )
    more = total(bills(dearer)).tco.point - total(bills(fleet)).tco.point
    assert more == pytest.approx(getattr(group, key).point * group.count * (by - 1), rel=1e-6, abs=1)
    for bill in bills(dearer):
        assert bill.tco.low <= bill.tco.point <= bill.tco.high
        assert bill.tco.point == pytest.approx(bill.capex.point + bill.opex.point)


@pytest.mark.parametrize(("old", "new", "message"), [
    ('site = "here"\ncount = 8', 'site = "there"\ncount = 8', "gpus 'h100' stand at site 'there'; [sites] has here"),
    ('gpu = "h20"', 'gpu = "b200"', "job 'answers' needs 'b200'; the fleet has h100, h20"),
    ("gpus = 4\n", "", "jobs.1: job 'answers': give either gpus (all the time) or gpu_hours (in all)"),
    ("to = 2025-01-31", "to = 2024-01-31", "jobs.0: job 'a model': to (2024-01-31) is before from (2025-01-01)"),
    ("kilowatts = 1.0", "kilowat = 1.0", "gpus.0.kilowatts is missing; add it"),
    ("server_dollars = 5_000", 'server_dollars = "dear"', "gpus.0.server_dollars: an amount is a number"),
    ("server_dollars = 5_000", "server_dollars = -1", "gpus.0.server_dollars: an amount must not be negative"),
    ("low = 20_000", "low = 26_000", "gpus.0.chip_dollars: an interval must contain its point"),
    ("years = 2", "years =", "not readable as TOML"),
])  # fmt: skip
def test_refusals_are_one_line_with_the_key(load, old, new, message):
    assert old in FLEET
    with pytest.raises(FleetError, match=re.escape(message)) as caught:
        load(FLEET.replace(old, new, 1))
    assert "\n" not in str(caught.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(FleetError, match=r"nowhere.toml: No such file or directory; give a fleet's TOML file"):
        load_fleet(tmp_path / "nowhere.toml")


def test_json_and_screen_and_page(load, tmp_path, capsys):
    fleet = load()
    found = json.loads(json.dumps(fleet_json(fleet, [1.0, 0.5])))
    assert found["total"]["capex_dollars"]["point"] == sum(g["capex_dollars"]["point"] for g in found["groups"])
    assert [(group["gpu"], group["site"]) for group in found["groups"]] == [("h100", "here"), ("h20", "here")]
    hourly = found["groups"][0]["dollars_per_gpu_hour"]
    assert hourly["0.5"]["high"] == pytest.approx(2 * hourly["1"]["high"])
    assert [month["month"] for month in found["months"]] == ["2025-01", "2025-02", "2025-03"]
    assert found["jobs"][0]["gpu_hours"]["point"] == 2976
    show_fleet(fleet, [1.0])
    out = capsys.readouterr().out
    assert "TCO" in out
    assert "no job known" in out
    write_fleet_page(fleet, [1.0], tmp_path / "fleet.html")
    page = (tmp_path / "fleet.html").read_text()
    assert page.count("data:image/svg+xml;base64,") == 2
    assert "://" not in re.sub(r"base64,[^\"]*", "", page)


def test_the_example_prints_a_file_that_loads(tmp_path):
    path = tmp_path / "copy.toml"
    path.write_text(example_text())
    assert load_fleet(path) == load_fleet()
