import pytest

from ziphius.tasks import Problem
from ziphius.tasks.own import FileVerifier
from ziphius.tasks.pool import Pool
from ziphius.tasks.verifier import Check


@pytest.fixture
def pool():
    """One worker of one's own."""
    pool = Pool(1)
    yield pool
    pool.close()


@pytest.fixture
def checker(tmp_path):
    """`checker(source, limit_s)` gives a function that makes the check of an answer by `judge` in that source."""

    def make(source, limit_s=20.0):
        folder = tmp_path / "checker"
        folder.mkdir(exist_ok=True)
        path = folder / "checks.py"
        path.write_text(source)
        verifier = FileVerifier.of(path, "judge", limit_s)
        return lambda answer, gold="": Check(verifier, Problem("own", "", gold), answer)

    return make
