"""Kernels against published speeds, and the laws that any machine keeps."""

from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ziphius.cost.data import Data
from ziphius.cost.machine import Machine

# DeepGEMM's README of February 2025: H800, FP8 with block scales; M, N, K, TFLOPS. Its kernels choose smaller tiles for
# the three sizes below, which are put too slow.
SMALL = [(64, 2112, 7168, 206), (64, 7168, 2048, 295), (128, 7168, 2048, 510)]
DEEPGEMM = [
    (64, 24576, 1536, 289), (64, 32768, 512, 219), (64, 7168, 16384, 336), (64, 4096, 7168, 287),
    (128, 2112, 7168, 352), (128, 24576, 1536, 535), (128, 32768, 512, 358), (128, 7168, 16384, 645),
    (128, 4096, 7168, 533), (4096, 2112, 7168, 1058), (4096, 24576, 1536, 990), (4096, 32768, 512, 590),
    (4096, 7168, 16384, 1358), (4096, 4096, 7168, 1304), (4096, 7168, 2048, 1025),
]  # fmt: skip
# FlashAttention-3 (arXiv 2407.08608, figure 5): H100, 16-bit forward, no mask, head 128; sequence, TFLOPS. With the
# causal mask, which is what is modelled, kernels are slower, the more the shorter the sequence.
FLASH = [(4096, 638), (16384, 648)]

DATA = Data()


def machine(gpu="h800", day=date(2025, 3, 1), **options):
    return Machine(DATA.accelerator(gpu), DATA.software(day), **options)


@pytest.mark.parametrize(("m", "n", "k", "tflops"), DEEPGEMM)
def test_products_are_those_of_deepgemm(m, n, k, tflops):
    seconds = machine().gemm(m, n, k, "fp8")
    assert 2 * m * n * k / seconds / 1e12 == pytest.approx(tflops, rel=0.08)


@pytest.mark.parametrize(("seq", "tflops"), FLASH)
def test_attention_is_that_of_flash_attention_3(seq, tflops):
    flops = 1e15
    seconds = machine("h100").attention(flops, seq / 2, 128)
    assert 0.8 * tflops < flops / seconds / 1e12 < tflops
    assert machine("h100").attention(flops, seq / 2, 128, plain=True) > 1.5 * seconds


@pytest.mark.parametrize(("m", "n", "k", "tflops"), SMALL)
def test_small_products_are_put_too_slow_by_a_quarter_at_most(m, n, k, tflops):
    predicted = 2 * m * n * k / machine().gemm(m, n, k, "fp8") / 1e12
    assert 0.74 * tflops < predicted < tflops


def test_large_products_reach_the_best_measured_speed():
    seconds = machine("h100").gemm(16896, 16384, 65536)
    assert 2 * 16896 * 16384 * 65536 / seconds / 1e12 == pytest.approx(794.5, rel=0.03)


sizes = st.integers(1, 20000)


@given(sizes, sizes, sizes)
def test_no_product_beats_the_rooflines(m, n, k):
    one = machine()
    seconds = one.gemm(m, n, k, "fp8")
    assert seconds >= 2 * m * n * k / one.peak("fp8")
    assert seconds >= (m * k + n * k + 2 * m * n) / (one.accelerator.memory_tb_s * 1e12)


@given(sizes, sizes, sizes)
def test_more_bandwidth_and_more_arithmetic_are_never_slower(m, n, k):
    plain = machine()
    faster = plain.accelerator.model_copy(update={"memory_tb_s": 10.0, "fp8_tflops": 4000.0, "fp8_reached": 3000.0})
    assert Machine(faster, plain.software).gemm(m, n, k, "fp8") <= plain.gemm(m, n, k, "fp8")


def test_a_power_cap_slows_kernels():
    full, capped = machine("h100"), machine("h100", watts=500.0)
    assert full.pace == 1.0
    assert capped.gemm(8192, 8192, 8192) > 1.1 * full.gemm(8192, 8192, 8192)
    assert machine("h100", watts=900.0).pace == 1.0


def test_a_precision_that_the_device_lacks_is_refused():
    with pytest.raises(ValueError, match="a100 has no fp8 arithmetic; use --precision bf16"):
        machine("a100").peak("fp8")
