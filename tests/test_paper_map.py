"""docs/PAPER_MAP.md names functions and tests: they must exist."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROWS = [
    re.findall(r"`([^`]+)`", line)
    for line in (ROOT / "docs" / "PAPER_MAP.md").read_text().splitlines()
    if line.startswith("| ") and "`ziphius." in line
]


def test_the_map_is_not_empty() -> None:
    assert len(ROWS) > 20


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_row_names_what_exists(row: list[str]) -> None:
    function, test = row[0], row[-1]
    parts = function.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for name in parts[cut:]:
            found = getattr(found, name)
        break
    file, _, name = test.partition("::")
    assert (ROOT / file).exists(), f"{file} is gone"
    if name:
        assert f"def {name}(" in (ROOT / file).read_text(), f"{test} is gone"
