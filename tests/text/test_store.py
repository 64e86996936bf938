from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ziphius.disk.errors import DiskError
from ziphius.text.store import SampleStore, lengths_of, writing

SAMPLE = st.lists(st.tuples(st.integers(0, 200_000), st.sampled_from([0.0, 1.0])), min_size=1, max_size=9).map(
    lambda pairs: ([token for token, _ in pairs], [weight for _, weight in pairs])
)


@settings(max_examples=20)  # each waits for the disk
@given(samples=st.lists(SAMPLE, max_size=9))
def test_samples_come_back(tmp_path_factory, samples):
    folder = tmp_path_factory.mktemp("store")
    with writing(folder) as store:
        for sample in samples:
            store.add(sample)
    found = SampleStore(folder)
    assert len(found) == len(samples)
    assert list(found) == samples
    assert found[1:3] == samples[1:3]
    assert lengths_of(found) == lengths_of(samples)


def test_what_a_kill_leaves_is_no_store(tmp_path):
    with suppress(KeyboardInterrupt), writing(tmp_path) as store:
        store.add(([1, 2], [0.0, 1.0]))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError):
        SampleStore(tmp_path)


def test_samples_are_mapped(tmp_path):
    with writing(tmp_path) as store:
        for number in range(1000):
            store.add(([number] * 100, [1.0] * 100))
    found = SampleStore(tmp_path)
    assert isinstance(found._tokens, np.memmap)
    assert (tmp_path / "tokens.bin").stat().st_size == 4 * 100_000
    assert found[999] == ([999] * 100, [1.0] * 100)


def test_a_disk_that_refuses_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match="cannot be a folder"), writing(tmp_path / "file" / "store"):
        pass
