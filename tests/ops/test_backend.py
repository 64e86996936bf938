import pytest
import torch

from ziphius import ops
from ziphius.ops import triton
from ziphius.ops.backend import backend_for, compute_dtype


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


needs_triton = pytest.mark.skipif(triton.why_not() is not None, reason=str(triton.why_not()))


@needs_triton
@pytest.mark.skipif(not triton.interpreted(), reason="TRITON_INTERPRET is not set")
def test_triton_takes_cpu_tensors_only_in_its_interpreter(monkeypatch):
    x = torch.zeros(1)
    assert backend_for(x) != "triton"  # never by itself
    with ops.backend("triton"):
        assert backend_for(x) == "triton"
        with pytest.raises(RuntimeError, match=r"takes fp32 and bf16 CUDA tensors, not Tensor torch.float64 on cpu"):
            backend_for(x.double())
        monkeypatch.setattr(triton, "interpreted", lambda: False)
        with pytest.raises(RuntimeError, match=r"takes fp32 and bf16 CUDA tensors, not Tensor torch.float32 on cpu"):
            backend_for(x)


def test_triton_is_refused_where_it_is_missing(monkeypatch):
    monkeypatch.setattr(triton, "why_not", lambda: "triton cannot be imported")
    with pytest.raises(RuntimeError, match="cannot be had: triton cannot be imported"), ops.backend("triton"):
        pass
