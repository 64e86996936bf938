import sys

import pytest

from ziphius.cost.data import Data


@pytest.fixture(scope="session")
def tables() -> Data:
    return Data()


@pytest.fixture
def verb(monkeypatch, capsys):
    """Run `ziphius …` in this process: exit code, what it printed, what it said on stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        from ziphius.cli import main

        monkeypatch.setattr(sys, "argv", ["ziphius", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return call
