import json

import pytest

from ziphius.cost.ledger import (
    LedgerRow,
    left_out,
    like_with_like,
    read_abandoned,
    read_rows,
    table_of_costs,
    write_rows,
)
from ziphius.ledger.clock import time_spent
from ziphius.ledger.folder import evaluation_key, stage_key, write_json

MACHINE = {"device": "H100", "devices": 2, "dollars_per_hour": 3600.0}


def write(run, folder, *rows):
    write_rows(run / "stages" / folder / "ledger.jsonl", rows)
    write_json(run / "stages" / folder / "stage.json", {"name": folder.split("-")[1], "kind": "sft"})


def test_bills():
    row = LedgerRow("rl", "grpo", 1800.0, tokens=5).priced(4.0)
    assert (row.device_hours, row.dollars) == (0.5, 2.0)
    assert LedgerRow("rl", "grpo", 1800.0).priced(0.0).dollars == 0.0


def test_devices_multiply_hours_and_the_rate_is_the_machines():
    row = LedgerRow("rl", "grpo", 1800.0, device="H100", devices=8).priced(16.0)
    assert (row.device_hours, row.dollars) == (4.0, 8.0)


def test_data_is_taken_out_of_a_stage():
    whole = LedgerRow("pretrain", "pretrain", 100.0, tokens=7, mfu=0.3, energy_kwh=2.0, device="H100", devices=2)
    work, data = whole.without_data(25.0)
    assert (work.seconds, work.tokens, work.mfu, work.energy_kwh) == (75.0, 7, 0.3, 1.5)
    assert (data.name, data.kind, data.seconds, data.energy_kwh) == ("data of pretrain", "data", 25.0, 0.5)
    assert (data.device, data.devices) == ("H100", 2)
    assert whole.without_data(1e9)[0].seconds == 0.0
    assert LedgerRow("sft", "sft", 10.0).without_data(1.0)[1].energy_kwh is None


def test_rows_are_read_in_the_order_of_the_stages(tmp_path):
    for folder, names in [("02-b", ["b", "evaluate b"]), ("01-a", ["a"]), ("10-j", ["j"])]:
        write(tmp_path, folder, *[LedgerRow(name, "sft", 1.5, mfu=0.25) for name in names])
    rows = read_rows(tmp_path)
    assert [row.name for row in rows] == ["a", "b", "evaluate b", "j"]
    assert rows[0] == LedgerRow("a", "sft", 1.5, mfu=0.25)
    line = (tmp_path / "stages" / "01-a" / "ledger.jsonl").read_text()
    assert json.loads(line)["device_hours"] == 0.0


def spent(run, *spans):
    """A start of a run in which these things took that long."""
    number = len(list((run / "time").glob("*"))) + 1
    started = {"machine": MACHINE, "spans": spans, "doing": "start-up and waiting", "since": 4e9}
    write_json(run / "time" / f"{number:04d}.json", started)


def test_bills_add_up_to_the_time_on_the_clock(tmp_path):
    """What no bill holds was lost, is unfinished, belongs to other settings, or was start-up."""
    write(tmp_path, "01-a", LedgerRow("a", "pretrain", 10.0), LedgerRow("data of a", "data", 2.0))
    write(tmp_path, "02-b", LedgerRow("b", "sft", 5.0))
    write(tmp_path, "02-b-123abc", LedgerRow("b", "sft", 4.0))
    a, b, other = (tmp_path / "stages" / name for name in ("01-a", "02-b", "02-b-123abc"))
    begun = tmp_path / "stages" / "03-c"
    begun.mkdir()
    write_json(begun / "settings.json", {"settings": {"stage": {"kind": "grpo"}}, "key": "c"})
    bill = {"name": "evaluate b", "kind": "evaluation", "seconds": 3.0}
    write_json(b / "evaluation.json", {"of": {"print": "now"}, "bill": bill, "results": []})
    write_json(tmp_path / "stages.json", ["01-a", "02-b", "03-c"])
    spent(tmp_path, ("start-up and waiting", 1.0), (stage_key(a), 9.0))
    spent(tmp_path, (stage_key(a), 9.0), (stage_key(b), 5.0), (evaluation_key(b, "now"), 8.0))
    spent(
        tmp_path, (evaluation_key(b, "old"), 7.0), (stage_key(other), 4.5), (stage_key(begun), 6.0), ("04-gone:x", 2.0)
    )
    rows, abandoned = read_rows(tmp_path), read_abandoned(tmp_path)
    assert [(row.name, row.kind, row.seconds) for row in rows] == [
        ("a", "pretrain", 10.0), ("data of a", "data", 2.0), ("lost in a", "lost", 6.0),
        ("b", "sft", 5.0), ("evaluate b", "evaluation", 3.0), ("lost in evaluate b", "lost", 5.0),
        ("c (unfinished)", "grpo", 6.0), ("start-up and waiting", "startup", 1.0),
    ]  # fmt: skip
    assert [(row.name, row.kind, row.seconds) for row in abandoned] == [
        ("b (other settings)", "abandoned", 4.0), ("lost in b (other settings)", "abandoned", 0.5),
        ("evaluate b (other settings)", "abandoned", 7.0), ("gone (other settings)", "abandoned", 2.0),
    ]  # fmt: skip
    assert sum(row.seconds for row in rows + abandoned) == sum(time_spent(tmp_path).values())
    assert (rows[2].device, rows[2].device_hours, rows[2].dollars) == ("H100", 2 * 6 / 3600, 6.0)


def test_an_evaluation_that_was_killed_is_unfinished_and_not_of_other_settings(tmp_path):
    write(tmp_path, "01-a", LedgerRow("a", "sft", 5.0))
    a = tmp_path / "stages" / "01-a"
    (a / "evaluations").mkdir()
    write_json(a / "evaluations" / "old.json", {})
    spent(tmp_path, (stage_key(a), 5.0), (evaluation_key(a, "old"), 2.0), (evaluation_key(a, "now"), 3.0))
    rows, abandoned = read_rows(tmp_path), read_abandoned(tmp_path)
    assert [(row.name, row.kind, row.seconds) for row in rows[1:]] == [("evaluate a (unfinished)", "evaluation", 3.0)]
    assert [(row.name, row.seconds) for row in abandoned] == [("evaluate a (other settings)", 2.0)]


def test_other_folders_and_broken_lines_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no run folder .* give the folder that `ziphius run` wrote"):
        read_rows(tmp_path)
    write(tmp_path, "01-a", LedgerRow("a", "sft", 1.0))
    with (tmp_path / "stages" / "01-a" / "ledger.jsonl").open("a") as file:
        file.write('{"name": "a", "whales": 3}\n')
    with pytest.raises(ValueError, match=r"ledger.jsonl:2: no row of a ledger"):
        read_rows(tmp_path)


ROWS = [
    LedgerRow("tokenizer", "tokenizer", 36.0),
    LedgerRow("pretrain", "pretrain", 3600.0, tokens=100),
    LedgerRow("data of pretrain", "data", 360.0),
    LedgerRow("rl", "grpo", 1800.0, tokens=50, energy_kwh=0.25),
    LedgerRow("evaluate rl", "evaluation", 180.0),
    LedgerRow("lost in rl", "lost", 90.0),
    LedgerRow("rl (replaced)", "abandoned", 54.0),
    LedgerRow("dive", "distil", 72.0),
]


def columns(rows=ROWS, plan=()):
    return {column.name: column for column in table_of_costs([row.priced(2.0) for row in rows], plan)}


def test_table_of_costs():
    found = columns()
    names = ["pre-training", "reinforcement", "distil", "data", "evaluation", "lost or redone", "total"]
    assert list(found) == names
    hours = {name: column.device_hours for name, column in found.items()}
    assert hours["data"] == pytest.approx(0.11)
    assert hours["lost or redone"] == pytest.approx(0.04)
    assert hours["total"] == pytest.approx(sum(hours[name] for name in names[:-1]))
    assert found["total"].dollars == pytest.approx(2 * hours["total"])
    assert (found["total"].tokens, found["total"].energy_kwh) == (150, 0.25)
    assert found["pre-training"].energy_kwh is None
    unseen = sum(hours[name] for name in ("data", "evaluation", "lost or redone"))
    assert left_out(list(found.values())) == pytest.approx(unseen / hours["total"])


def test_a_column_for_lost_work_even_where_nothing_was_lost():
    assert columns(ROWS[:1])["lost or redone"].seconds == 0.0


def test_ratios_compare_what_was_planned_and_has_run():
    plan = [
        {"name": "tokenizer", "kind": "tokenizer", "seconds": 0.0},
        {"name": "pretrain", "kind": "pretrain", "seconds": 1800.0},
        {"name": "rl", "kind": "grpo", "seconds": 3600.0},
        {"name": "later", "kind": "sft", "seconds": 999.0},
    ]
    found = columns(plan=plan)
    assert found["pre-training"].ratio == 2.0
    assert found["reinforcement"].ratio == 0.5
    assert found["data"].ratio is None
    assert "fine-tuning" not in found
    assert like_with_like(list(found.values())) == pytest.approx(1.5 / 1.5)
    assert like_with_like(list(columns().values())) is None


def test_a_plan_is_in_the_hours_of_the_same_devices():
    rows = [LedgerRow("rl", "grpo", 3600.0, device="H100", devices=8)]
    found = columns(rows, [{"name": "rl", "kind": "grpo", "seconds": 3600.0}])
    assert found["reinforcement"].planned_device_hours == 8.0
    assert found["reinforcement"].ratio == 1.0
