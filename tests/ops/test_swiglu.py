import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from ziphius import ops

from .compare import agree, close, few, normal, seeds, sizes


@few
@given(N=sizes, D=sizes, seed=seeds, dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_backends_equal_reference(N, D, seed, dtype):
    agree(ops.swiglu, normal(seed, N, 2 * D, dtype=dtype) * 2)


def test_formula():
    x = normal(0, 3, 4, 10)
    close(ops.swiglu(x), F.silu(x[..., :5]) * x[..., 5:])


def test_gradient():
    assert torch.autograd.gradcheck(ops.swiglu, normal(0, 4, 6).double().requires_grad_())


def test_autocast():
    agree(lambda x, w: ops.swiglu(F.linear(x, w)), normal(0, 5, 8), normal(1, 12, 8), autocast=True)
