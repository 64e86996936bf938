import torch
from hypothesis import given
from hypothesis import strategies as st

from ziphius import ops

from .compare import agree, close, few, normal, seeds, sizes


def angles(seed, *shape):
    phase = normal(seed, *shape) * 10
    return phase.cos(), phase.sin()


@few
@given(B=sizes, T=sizes, H=sizes, pairs=sizes, seed=seeds, dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_backends_equal_reference(B, T, H, pairs, seed, dtype):
    cos, sin = angles(seed, 1, T, 1, pairs)
    agree(lambda x: ops.apply_rope(x, cos, sin), normal(seed + 1, B, T, H, 2 * pairs, dtype=dtype))


def test_it_is_the_complex_rotation():
    """DeepSeek's own code multiplies complex numbers; ours lists first elements, then second ones."""
    x, phase = normal(0, 2, 5, 3, 8), normal(1, 1, 5, 1, 4)
    turned = torch.view_as_complex(x.reshape(2, 5, 3, 4, 2)) * torch.polar(torch.ones_like(phase), phase)
    expected = torch.cat([turned.real, turned.imag], dim=-1)
    close(ops.apply_rope(x, phase.cos(), phase.sin()), expected)


def test_lengths_and_relative_angles_are_kept():
    q, k = normal(0, 1, 8), normal(1, 1, 8)
    a, b = normal(2, 1, 4), normal(3, 1, 4)

    def product(left, right):
        return (ops.apply_rope(q, left.cos(), left.sin()) * ops.apply_rope(k, right.cos(), right.sin())).sum()

    close(ops.apply_rope(q, a.cos(), a.sin()).norm(), q.norm())
    close(product(a, b), product(a + 1.5, b + 1.5))


def test_gradient():
    cos, sin = (t.double() for t in angles(1, 3, 4))
    x = normal(0, 2, 3, 8).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ops.apply_rope(x, cos, sin), x)


def test_a_slice_of_a_larger_tensor():
    cos, sin = angles(2, 1, 4, 1, 3)
    agree(lambda x: ops.apply_rope(x[..., 5:], cos, sin), normal(0, 2, 4, 3, 11))


def test_autocast_keeps_the_dtype_of_the_input():
    cos, sin = angles(1, 3, 4)
    agree(lambda x: ops.apply_rope(x, cos, sin), normal(0, 2, 3, 8), autocast=True)
    agree(lambda x: ops.apply_rope(x, cos, sin), normal(0, 2, 3, 8, dtype=torch.bfloat16), autocast=True)
