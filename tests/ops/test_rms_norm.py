import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ziphius import ops

from .compare import agree, close, few, normal, seeds, sizes


@few
@given(B=sizes, T=sizes, D=st.integers(4, 40), seed=seeds, dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_backends_equal_reference(B, T, D, seed, dtype):
    x, weight = normal(seed, B, T, D, dtype=dtype) * 3, normal(seed + 1, D)
    agree(lambda x, w: ops.rms_norm(x, w, 1e-6), x, weight.to(dtype))


def test_autocast():
    agree(lambda x, w: ops.rms_norm(x, w, 1e-6), normal(0, 4, 16), normal(1, 16), autocast=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert ops.rms_norm(normal(0, 4, 16), normal(1, 16), 1e-6).dtype == torch.bfloat16


@pytest.mark.parametrize("backend", ["auto", "torch", "reference"])
def test_formula(backend):
    x, weight = normal(0, 3, 8), normal(1, 8)
    with ops.backend(backend):
        got = ops.rms_norm(x, weight, 0.5)
    close(got, weight * x / (x.square().mean(-1, keepdim=True) + 0.5).sqrt())
    close(got, torch.nn.functional.rms_norm(x, (8,), weight, 0.5))


@pytest.mark.filterwarnings("ignore:Input .* requires gradient")
@pytest.mark.parametrize("backend", ["auto", "torch", "reference"])
def test_gradient(backend):
    """In fp32, which the statistics are kept in: steps and tolerances are those that it resolves."""
    inputs = normal(0, 5, 7).requires_grad_(), normal(1, 7).requires_grad_()
    with ops.backend(backend):
        assert torch.autograd.gradcheck(lambda x, w: ops.rms_norm(x, w, 1e-3), inputs, eps=1e-2, atol=5e-3, rtol=5e-3)


def test_large_values_do_not_overflow_in_bf16():
    x = torch.full((2, 64), 1e4, dtype=torch.bfloat16)
    out = ops.rms_norm(x, torch.ones(64, dtype=torch.bfloat16), 1e-6)
    close(out, torch.ones_like(x))


def test_slices_of_a_larger_tensor():
    """The latents are normalised as a part of a wider projection."""
    wide = normal(0, 2, 3, 20)
    agree(lambda x, w: ops.rms_norm(x[..., :12], w, 1e-6), wide, normal(1, 12))
