import pytest
import torch

from ziphius import ops
from ziphius.ops.backend import compute_dtype


def test_blocks_nest_and_end():
    assert ops.current_backend() == "auto"
    with ops.backend("reference"):
        with ops.backend("torch"):
            assert ops.current_backend() == "torch"
        assert ops.current_backend() == "reference"
    assert ops.current_backend() == "auto"


def test_a_failing_block_ends_too():
    with pytest.raises(RuntimeError), ops.backend("reference"):
        raise RuntimeError
    assert ops.current_backend() == "auto"


def test_unknown_backends_are_refused():
    with pytest.raises(ValueError, match="no ops backend called 'quick'"), ops.backend("quick"):
        pass


def test_compute_dtype():
    x = torch.zeros(1)
    assert compute_dtype(x) == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert compute_dtype(x) == torch.bfloat16
