"""Attention within packed samples in Triton against the reference: on a GPU, or in Triton's interpreter on the CPU."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ziphius import ops
from ziphius.ops import attention
from ziphius.ops import triton as kernels

from .compare import close, few, normal, seeds, sizes
from .test_causal_attention import qkv, random_segments, run

pytestmark = pytest.mark.skipif(kernels.why_not() is not None, reason=str(kernels.why_not()))

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def check(segments, *inputs):
    """Result and gradients of the kernels against the reference's."""
    inputs = [x.to(DEVICE).requires_grad_() for x in inputs]
    found = {}
    for name in ("reference", "triton"):
        with ops.backend(name):
            out = run(0.3, segments.to(DEVICE))(*inputs)
            upstream = normal(7, *out.shape, dtype=out.dtype).to(DEVICE)
            found[name] = out, *torch.autograd.grad(out, inputs, upstream)
    for got, expected in zip(found["triton"], found["reference"], strict=True):
        assert got.dtype == expected.dtype
        close(got, expected)


@settings(few, max_examples=12)
@given(
    B=st.integers(1, 2), T=st.integers(1, 80), G=st.integers(1, 2), share=st.integers(1, 2), K=sizes, V=sizes,
    seed=seeds, dtype=st.sampled_from([torch.float32, torch.bfloat16]), changes=st.sampled_from([0.02, 0.5]),
)  # fmt: skip
def test_samples_of_any_length(B, T, G, share, K, V, seed, dtype, changes):
    check(random_segments(seed, B, T, changes), *qkv(seed, B, T, G * share, K, V, dtype, G))


def test_a_head_of_a_power_of_two_and_a_rest():
    """V3's 128 + 64 in small: the rest is a product of its own."""
    check(random_segments(1, 1, 70, 0.05), *qkv(1, 1, 70, 2, 48, 32))


@pytest.mark.filterwarnings("ignore:All-NaN")  # the first sample's own results
def test_other_samples_are_not_read():
    """A whole block of keys in another sample may hold anything."""
    q, k, v = qkv(0, 1, 96, 1, 4, 4)
    segments = (torch.arange(96) >= 64).long().unsqueeze(0)
    spoiled = [x.index_fill(1, torch.arange(64), float("nan")) for x in (k, v)]
    with ops.backend("triton"):
        got = run(0.3, segments)(q, *spoiled)
        close(got[:, 64:], run(0.3, segments)(q, k, v)[:, 64:])


def test_no_mask_is_made(monkeypatch):
    """Latent attention over packed rows, with the heads of keys and values unlike in width."""
    monkeypatch.setattr(attention, "segment_mask", lambda *_: pytest.fail("a T×T mask"))
    phase = normal(3, 1, 40, 2).to(DEVICE)
    q, kv, k = (normal(i, *s).to(DEVICE) for i, s in enumerate([(2, 40, 2, 9), (2, 40, 2, 8), (2, 40, 4)]))
    segments = random_segments(0, 2, 40, 0.1).to(DEVICE)
    attend = lambda: ops.latent_attention(q, kv, k, phase.cos(), phase.sin(), 0.3, segments)
    with ops.backend("triton"):
        got = attend()
    monkeypatch.undo()
    with ops.backend("reference"):
        close(got, attend())


def test_it_is_an_operator_that_compilers_know():
    from ziphius.ops.triton import segments

    q, k, v = (x.to(DEVICE).requires_grad_() for x in qkv(0, 1, 20, 2, 8, 6, G=1))
    starts, ends = segments.sample_bounds(random_segments(0, 1, 20, 0.2).to(DEVICE))
    torch.library.opcheck(segments._attend, (q, k, v, starts, ends, 0.3))


def test_bounds_of_samples():
    from ziphius.ops.triton.segments import sample_bounds

    starts, ends = sample_bounds(torch.tensor([[0, 0, 1, 1, 1, -1], [5, 5, 5, 5, 5, 5]]))
    assert starts.tolist() == [[0, 0, 2, 2, 2, 5], [0] * 6]
    assert ends.tolist() == [[2, 2, 5, 5, 5, 6], [6] * 6]


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE.type == "cpu", reason="needs a CUDA device")
@pytest.mark.parametrize(("K", "V", "G"), [(192, 128, 8), (128, 128, 2)])
def test_on_a_gpu_at_full_width(K, V, G):
    """V3's heads, and Llama's groups."""
    check(random_segments(0, 2, 1000, 0.005), *qkv(0, 2, 1000, 8, K, V, torch.bfloat16, G))


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE.type == "cpu", reason="needs a CUDA device")
def test_rows_of_one_sample_on_a_gpu():
    """torch's flash kernel, with values padded to the keys' width."""
    inputs = [x.to(DEVICE).requires_grad_() for x in qkv(0, 2, 300, 8, 192, 128, torch.bfloat16)]
    out = run(0.1)(*inputs)
    close(out, attention.causal_attention_reference(*inputs, 0.1))
