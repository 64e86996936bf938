"""Matrices in blocks of e4m3: how near they are, and that the native product knows every number of the format."""

import pytest
import torch

from tests.engine.test_forward import needs_kernels
from ziphius.ops.fp8 import Fp8Matrix, quantise_fp8
from ziphius.ops.native.decoder import linear


def test_blocks_are_within_half_a_step():
    weight = torch.randn(200, 300, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 2, 200)[:, None]
    weight[128:, 256:] = 0
    matrix = quantise_fp8(weight)
    assert matrix.scale.shape == (2, 3)
    largest = matrix.scale.repeat_interleave(128, 0)[:200].repeat_interleave(128, 1)[:, :300]
    # half a step of three mantissa bits, or of the smallest subnormal, 2^-9
    assert ((matrix.dequantise() - weight).abs() <= torch.maximum(weight.abs() / 16, largest * 2**-10) * 1.001).all()


@needs_kernels
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_every_number_of_the_format_is_multiplied_as_it_is(scale):
    numbers = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    numbers = numbers[~numbers.float().isnan()]
    matrix = Fp8Matrix(numbers.unsqueeze(1).contiguous(), torch.full((2, 1), scale))
    assert torch.equal(linear(torch.ones(1, 1), matrix)[0], numbers.float() * scale)


@needs_kernels
@pytest.mark.parametrize("tokens", [1, 3, 4, 6])
@pytest.mark.parametrize("shape", [(1, 1), (40, 130), (300, 257), (129, 384)])
def test_the_native_product_is_that_of_the_dense_matrix(shape, tokens):
    generator = torch.Generator().manual_seed(tokens)
    matrix = quantise_fp8(torch.randn(shape, generator=generator))
    matrix.scale *= torch.rand(matrix.scale.shape, generator=generator)
    x = torch.randn(tokens, shape[1], generator=generator)
    expected = (x.double() @ matrix.dequantise().double().t()).float()
    torch.testing.assert_close(linear(x, matrix), expected, rtol=1e-5, atol=1e-4)
