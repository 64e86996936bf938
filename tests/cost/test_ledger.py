import json

import pytest

from ziphius.cost.ledger import LedgerRow, append_row, read_rows


def test_bills_count_lost_time():
    row = LedgerRow("rl", "grpo", 1800.0, tokens=5, lost_seconds=900.0).priced(4.0)
    assert row.device_hours == 0.75
    assert row.dollars == 3.0
    assert LedgerRow("rl", "grpo", 1800.0).priced(0.0).dollars == 0.0


def test_rows_are_read_in_the_order_of_the_stages(tmp_path):
    for folder, names in [("02-b", ["b", "evaluate b"]), ("01-a", ["a"]), ("10-j", ["j"])]:
        (tmp_path / "stages" / folder).mkdir(parents=True)
        for name in names:
            append_row(tmp_path / "stages" / folder / "ledger.jsonl", LedgerRow(name, "sft", 1.5, mfu=0.25))
    rows = read_rows(tmp_path)
    assert [row.name for row in rows] == ["a", "b", "evaluate b", "j"]
    assert rows[0] == LedgerRow("a", "sft", 1.5, mfu=0.25)
    line = (tmp_path / "stages" / "01-a" / "ledger.jsonl").read_text()
    assert json.loads(line)["device_hours"] == 0.0


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no run folder .* give the folder that `ziphius run` wrote"):
        read_rows(tmp_path)
