"""The C kernels: against the references, the same bits whatever the threads, and how they are built."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ziphius import ops
from ziphius.ops.native import build

from .compare import few, normal, seeds

try:
    build.build()
except build.BuildError as error:
    pytest.skip(f"no native kernels here: {error}", allow_module_level=True)

FP32, BF16 = torch.float32, torch.bfloat16
dtypes = st.sampled_from([FP32, BF16])
_TOLERANCE = {FP32: 1e-5, BF16: 2e-2}  # of the result's norm


def run(name: str, operation, inputs: list[Tensor | None], upstream: int = 0) -> list[Tensor]:
    """Results and gradients on backend `name`; a second result is taken along without a gradient."""
    leaves = [x.detach().requires_grad_() if x is not None and x.is_floating_point() else x for x in inputs]
    with ops.backend(name):
        outs = operation(*leaves)
        outs = outs if isinstance(outs, tuple) else (outs,)
        grads = torch.autograd.grad(
            outs[0], [x for x in leaves if x is not None and x.requires_grad],
            normal(upstream, *outs[0].shape, dtype=outs[0].dtype),
        )  # fmt: skip
    return [x.detach() for x in outs] + list(grads)


def agree(operation, inputs: list[Tensor | None], terms: int = 1) -> None:
    """`terms`: the longest sum of products of order one; where such a sum cancels, only its rounding is left."""
    for got, expected in zip(run("native", operation, inputs), run("reference", operation, inputs), strict=True):
        assert got.dtype == expected.dtype
        assert got.shape == expected.shape
        tolerance = _TOLERANCE[BF16 if any(x is not None and x.dtype == BF16 for x in inputs) else FP32]
        norm = expected.double().norm().clamp(min=(terms * max(expected.numel(), 1)) ** 0.5)
        assert (got.double() - expected.double()).norm() <= tolerance * norm


# --- attention -------------------------------------------------------------------------------------------------------


def attention_inputs(seed, dtype, B, T, H, N, R, V, per_row=False, segments=False):
    angle = normal(seed + 3, B if per_row else 1, T, R // 2) * 3
    numbers = None
    if segments:
        numbers = torch.randint(0, 4, (B, T), generator=torch.Generator().manual_seed(seed)).sort(-1).values
        numbers[:, T - T // 5 :] = -1
    return [
        normal(seed, B, T, H, N + R, dtype=dtype), normal(seed + 1, B, T, H, N + V, dtype=dtype),
        normal(seed + 2, B, T, R, dtype=dtype), angle.cos(), angle.sin(), numbers,
    ]  # fmt: skip


def attend(q, kv, k_rope, cos, sin, segments):
    return ops.latent_attention(q, kv, k_rope, cos.detach(), sin.detach(), q.shape[-1] ** -0.5, segments)


def attention_agrees(inputs):
    def operation(q, kv, k_rope):
        return attend(q, kv, k_rope, *inputs[3:])

    agree(operation, inputs[:3])


@few
@given(
    seed=seeds, dtype=dtypes, B=st.integers(1, 3), T=st.integers(1, 70), H=st.integers(1, 3), N=st.integers(1, 40),
    R=st.integers(1, 10).map(lambda pairs: 2 * pairs), V=st.integers(1, 40), per_row=st.booleans(),
    segments=st.booleans(),
)  # fmt: skip
def test_attention(seed, dtype, B, T, H, N, R, V, per_row, segments):
    attention_agrees(attention_inputs(seed, dtype, B, T, H, N, R, V, per_row, segments))


@pytest.mark.parametrize("T", [1, 15, 16, 17, 128, 300])
@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("segments", [False, True])
def test_attention_of_the_ladders_heads(T, dtype, segments):
    attention_agrees(attention_inputs(T, dtype, 2, T, 4, 16, 16, 32, segments, segments))


def test_attention_with_segments_out_of_order():
    inputs = attention_inputs(0, FP32, 2, 50, 2, 16, 16, 32)
    inputs[5] = torch.randint(-1, 3, (2, 50), generator=torch.Generator().manual_seed(0))
    attention_agrees(inputs)


def test_segments_never_see_each_other():
    """Not even where another sample holds a NaN outside the tile that both share."""
    inputs = attention_inputs(0, FP32, 1, 64, 2, 16, 16, 32)
    segments = (torch.arange(64) >= 32).long().unsqueeze(0)
    alone = attend(*[x[:, 32:] for x in inputs[:5]], None)
    inputs[1][:, :32] = float("nan")
    with ops.backend("native"):
        together = attend(*inputs[:5], segments)[:, 32:]
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


def test_attention_beyond_the_native_sizes_takes_the_torch_path():
    inputs = attention_inputs(0, FP32, 1, 4, 1, 200, 16, 8)
    with ops.backend("torch"):
        expected = attend(*inputs)
    assert torch.equal(attend(*inputs), expected)


# --- grouped attention ----------------------------------------------------------------------------------------------


def grouped_agrees(seed, dtype, B, T, G, per, K, per_row=False, numbers=None):
    angle = normal(seed + 3, B if per_row else 1, T, K // 2) * 3
    q, k, v = (normal(seed + i, B, T, heads, K, dtype=dtype) for i, heads in enumerate((G * per, G, G)))

    def operation(q, k, v):
        return ops.grouped_attention(q, k, v, angle.cos(), angle.sin(), K**-0.5, numbers)

    agree(operation, [q, k, v])


@few
@given(
    seed=seeds, dtype=dtypes, B=st.integers(1, 3), T=st.integers(1, 70), G=st.integers(1, 3), per=st.integers(1, 4),
    K=st.integers(1, 40).map(lambda pairs: 2 * pairs), per_row=st.booleans(), segments=st.booleans(),
)  # fmt: skip
def test_grouped_attention(seed, dtype, B, T, G, per, K, per_row, segments):
    numbers = torch.randint(-1, 3, (B, T), generator=torch.Generator().manual_seed(seed)) if segments else None
    grouped_agrees(seed, dtype, B, T, G, per, K, per_row, numbers)


@pytest.mark.parametrize("T", [16, 17, 300])
@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("segments", [False, True])
def test_grouped_attention_of_published_heads(T, dtype, segments):
    numbers = (torch.arange(T) * 3 // T).expand(2, T) if segments else None
    grouped_agrees(T, dtype, 2, T, 2, 3, 64, segments, numbers)


# --- the other operations -------------------------------------------------------------------------------------------


@few
@given(seed=seeds, x=dtypes, weight=dtypes, rows=st.integers(1, 80), width=st.integers(1, 150), sliced=st.booleans())
def test_rms_norm(seed, x, weight, rows, width, sliced):
    x = normal(seed, 2, rows, width + 3 * sliced, dtype=x)

    def operation(x, w):
        return ops.rms_norm(x[..., :width], w, 1e-6)

    agree(operation, [x, normal(seed + 1, width, dtype=weight)])


@few
@given(seed=seeds, delta=dtypes, weight=dtypes, rows=st.integers(1, 80), width=st.integers(1, 150), used=st.booleans())
def test_add_rms_norm(seed, delta, weight, rows, width, used):
    """`used`: whether the sum goes on beside its norm, and brings a gradient of its own."""

    def operation(x, delta, w):
        total, y = ops.add_rms_norm(x, delta, w, 1e-6)
        return torch.cat([total, y.float() * 2]) if used else y

    x, delta = normal(seed, rows, width), normal(seed + 2, rows, width, dtype=delta)
    agree(operation, [x, delta, normal(seed + 1, width, dtype=weight)])


@few
@given(seed=seeds, dtype=dtypes, rows=st.integers(1, 40), width=st.integers(1, 70), strided=st.booleans())
def test_swiglu(seed, dtype, rows, width, strided):
    x = normal(seed, 2 * width, rows, dtype=dtype).t() if strided else normal(seed, rows, 2 * width, dtype=dtype)
    agree(ops.swiglu, [x])


@few
@given(
    seed=seeds, dtype=dtypes, N=st.integers(1, 60), D=st.integers(1, 40), F=st.integers(1, 40), E=st.integers(1, 9),
    data=st.data(),
)  # fmt: skip
def test_grouped_experts(seed, dtype, N, D, F, E, data):
    K = data.draw(st.integers(1, E))
    used = data.draw(st.integers(K, E))  # the experts from `used` on stay empty
    generator = torch.Generator().manual_seed(seed)
    indices = torch.rand(N, used, generator=generator).topk(K).indices

    def operation(x, weights, gate_up, down):
        return ops.grouped_experts(x, indices, weights, gate_up, down)

    inputs = [normal(seed, N, D, dtype=dtype), torch.rand(N, K, generator=generator).to(dtype)]
    agree(operation, [*inputs, normal(1, E, 2 * F, D, dtype=dtype) / 4, normal(2, E, D, F, dtype=dtype) / 4], terms=D)


@few
@given(
    seed=seeds, dtype=dtypes, N=st.integers(1, 40), D=st.integers(1, 40), V=st.integers(1, 80),
    temperature=st.sampled_from([0.5, 1.0, 1.7]),
)  # fmt: skip
def test_cross_entropy(seed, dtype, N, D, V, temperature):
    targets = torch.randint(0, V, (N,), generator=torch.Generator().manual_seed(seed))

    def operation(x, head):
        return tuple(ops.linear_cross_entropy(x, head, targets, temperature))

    agree(operation, [normal(seed, N, D, dtype=dtype), normal(seed + 1, V, D, dtype=dtype) / 4])


@few
@given(
    seed=seeds, N=st.integers(1, 40), groups=st.sampled_from([1, 2, 4]), size=st.integers(2, 9), biased=st.booleans(),
    scoring=st.sampled_from(["sigmoid", "softmax"]), normalise=st.booleans(), data=st.data(),
)  # fmt: skip
def test_route(seed, N, groups, size, biased, scoring, normalise, data):
    kept = data.draw(st.integers(1, groups))
    top_k = data.draw(st.integers(1, kept * size))
    bias = normal(seed + 1, groups * size) if biased else None

    def operation(logits):
        scores, indices, weights = ops.route(logits, bias, top_k, groups, kept, scoring, normalise, 2.5)
        both = torch.cat([weights, scores.square()], dim=1)  # gradients through weights and scores at once
        return both, indices, weights * 1

    agree(operation, [normal(seed, N, groups * size)])


@few
@given(
    seed=seeds, B=st.integers(1, 3), T=st.integers(1, 30), E=st.integers(1, 20), padded=st.booleans(), data=st.data()
)
def test_balance_loss(seed, B, T, E, padded, data):
    generator = torch.Generator().manual_seed(seed)
    indices = torch.rand(B * T, E, generator=generator).topk(data.draw(st.integers(1, E))).indices
    valid = torch.rand(B, T, generator=generator) < 0.7 if padded else None

    def operation(scores):
        return ops.sequence_balance_loss(scores, indices, (B, T), valid)

    agree(operation, [torch.rand(B * T, E, generator=generator) + 0.1])


def test_indices_out_of_range_are_refused():
    x, gate_up, down = normal(0, 3, 8), normal(1, 2, 8, 8), normal(2, 2, 8, 4)
    with pytest.raises(IndexError, match="expert index"):
        ops.grouped_experts(x, torch.tensor([[0], [2], [1]]), torch.ones(3, 1), gate_up, down)
    with pytest.raises(IndexError, match="target"):
        ops.linear_cross_entropy(x, normal(3, 5, 8), torch.tensor([0, 5, 1]))
    with pytest.raises(ValueError, match="top_k"):
        ops.route(normal(0, 3, 8), None, 5, groups=2, kept_groups=1)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_what_is_not_finite_stays_so(bad, dtype):
    inputs = attention_inputs(0, dtype, 1, 40, 1, 16, 16, 32)
    inputs[0][0, 20, 0, 3] = bad
    assert not attend(*inputs)[0, 20].isfinite().any()
    x = normal(0, 4, 32, dtype=dtype)
    x[2, 5] = bad
    assert not ops.rms_norm(x, torch.ones(32), 1e-6)[2].isfinite().all()
    y = ops.linear_cross_entropy(x, normal(1, 40, 32, dtype=dtype), torch.zeros(4, dtype=torch.int64))
    assert not y.logprobs[2].isfinite()
    assert y.logprobs[[0, 1, 3]].isfinite().all()
    if bad != float("-inf"):  # silu there is zero, as in torch
        assert not ops.swiglu(x)[2].isfinite().all()


def everything(dtype) -> list[Tensor]:
    """Results and gradients of every operation at a size that splits over threads."""
    attention = attention_inputs(0, dtype, 3, 70, 3, 16, 16, 32, segments=True)
    results = run("native", lambda q, kv, k: attend(q, kv, k, *attention[3:]), attention[:3])
    x, weight = normal(1, 300, 96, dtype=dtype), normal(2, 96)
    results += run("native", lambda x, w: ops.rms_norm(x, w, 1e-6), [x, weight])
    results += run("native", ops.swiglu, [x])
    indices = normal(3, 300, 6).topk(2).indices
    experts = [x, normal(4, 300, 2).abs(), normal(5, 6, 64, 96, dtype=dtype) / 8, normal(6, 6, 96, 32, dtype=dtype) / 8]
    results += run("native", lambda x, w, up, down: ops.grouped_experts(x, indices, w, up, down), experts)
    return results


@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_the_same_bits_every_time_and_on_any_number_of_threads(dtype):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one, again = everything(dtype), everything(dtype)
        torch.set_num_threads(2)
        two = everything(dtype)
    finally:
        torch.set_num_threads(before)
    for a, b in zip(one, again, strict=True):
        assert torch.equal(a, b)
    gemm_free = 4 + 3 + 2  # torch's own products, which the experts use, may round otherwise on two threads
    for a, b in zip(one[:gemm_free], two[:gemm_free], strict=True):
        assert torch.equal(a, b)
    for a, b in zip(one[gemm_free:], two[gemm_free:], strict=True):
        torch.testing.assert_close(a, b)


def test_what_native_cannot_take():
    x, weight = normal(0, 2, 8).double(), torch.ones(8)
    with ops.backend("native"), pytest.raises(RuntimeError, match=r"not Tensor torch\.float64"):
        ops.rms_norm(x, weight, 1e-6)
    assert ops.rms_norm(x, weight.double(), 1e-6).dtype == torch.float64  # auto goes on with torch


# --- the build ------------------------------------------------------------------------------------------------------

_PROGRAM = """
import sys, warnings, torch
from ziphius import ops
x = torch.arange(8.).view(2, 4)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    ops.swiglu(x), ops.swiglu(x)
print(len(caught), *[str(w.message) for w in caught])
with ops.backend("reference"):
    assert torch.allclose(ops.swiglu(x), x[:, :2] * torch.sigmoid(x[:, :2]) * x[:, 2:])
try:
    with ops.backend("native"):
        print("native")
except RuntimeError as error:
    print(error)
assert "torch._dynamo" not in sys.modules, "the compiler takes a second to load, and nothing here is compiled"
"""


def start(cache: Path, **environment: str) -> subprocess.Popen[str]:
    env = os.environ | {"ZIPHIUS_CACHE": str(cache)} | environment
    command = [sys.executable, "-c", _PROGRAM]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> list[str]:
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    return out.splitlines()


def test_without_a_compiler_there_is_one_warning_and_the_right_numbers(tmp_path):
    warned, refused = finish(start(tmp_path, CC="/nonexistent"))
    assert warned.startswith("1 ziphius runs its slower torch path")
    assert "/nonexistent" in warned
    assert "cannot be had" in refused


def test_a_compiler_that_fails_says_so(tmp_path):
    (tmp_path / "cc").write_text("#!/bin/sh\n[ $1 = --version ] && exit 0\necho 'error: out of luck' >&2\nexit 1\n")
    (tmp_path / "cc").chmod(0o755)
    warned, _ = finish(start(tmp_path / "cache", CC=str(tmp_path / "cc")))
    assert warned.startswith("1 ")
    assert "out of luck" in warned
    assert not list((tmp_path / "cache").iterdir())


def test_several_processes_build_at_once_and_later_ones_reuse_it(tmp_path):
    """Without optimisation, which takes nine tenths of a build's time and is no part of the race."""
    quick, cache = tmp_path / "cc", tmp_path / "cache"
    quick.write_text(f'#!/bin/sh\nexec {build._find_compiler()} "$@" -O0\n')
    quick.chmod(0o755)
    for lines in map(finish, [start(cache, CC=str(quick)), start(cache, CC=str(quick))]):
        assert lines == ["0", "native"]
    (built,) = cache.iterdir()
    before = built.stat().st_mtime_ns
    assert finish(start(cache, CC=str(quick))) == ["0", "native"]
    assert built.stat().st_mtime_ns == before


def test_a_damaged_library_is_reported(tmp_path):
    (tmp_path / "broken.so").write_bytes(b"not a library")
    with pytest.raises(build.BuildError, match="delete it"):
        build.load(tmp_path / "broken.so")


def test_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("ZIPHIUS_CACHE", str(tmp_path / "own"))
    assert build.cache_folder() == tmp_path / "own"
    monkeypatch.delenv("ZIPHIUS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert build.cache_folder() == tmp_path / "ziphius"


def test_kernels_compile_without_warnings():
    compiler = build._find_compiler()
    sources = [str(path) for path in build._sources()]
    command = [compiler, *build._FLAGS, "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-fopenmp", *sources]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
