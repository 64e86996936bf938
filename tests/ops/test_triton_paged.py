"""The Triton kernel against the reference: on a GPU, or in Triton's interpreter on the CPU."""

from __future__ import annotations

from math import ceil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ziphius import ops
from ziphius.ops import triton as kernels
from ziphius.ops.paged import paged_attention, paged_attention_reference, uses_kernel
from ziphius.ops.placement import Placement

from .compare import close, few, latent, normal, seeds, shared

pytestmark = pytest.mark.skipif(kernels.why_not() is not None, reason=str(kernels.why_not()))

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def step_of(brings, block_size, H, C, R, dtype, seed=0, room=0, layout=None):
    """Queries, memory and placement of sequences that bring (stored, new) tokens; unseen memory holds NaN."""
    layout = layout or latent(C, R)
    generator = torch.Generator().manual_seed(seed)
    blocks = -(-max(sum(pair) for pair in brings) // block_size) + room
    tables = torch.randperm(len(brings) * blocks, generator=generator).view(len(brings), blocks).int()
    rows = torch.tensor([row for row, (_, new) in enumerate(brings) for _ in range(new)], dtype=torch.int32)
    positions = torch.cat([torch.arange(old, old + new) for old, new in brings])
    placement = Placement.of(rows, positions, tables, block_size)
    memory = torch.full((len(brings) * blocks * block_size, layout.width), float("nan"), dtype=dtype)
    for row, pair in enumerate(brings):
        column = torch.arange(sum(pair))
        slots = tables[row, column // block_size].long() * block_size + column % block_size
        memory[slots] = normal(seed + row, len(column), layout.width, dtype=dtype)
    q = normal(seed + 99, len(rows), H, layout.key, dtype=dtype)
    parts = (placement.rows_N, placement.positions_N, placement.slots_N, placement.tables_BM)
    placement = Placement(*(x.to(DEVICE) for x in parts), block_size, max(new for _, new in brings))
    return q.to(DEVICE), memory.to(DEVICE), placement


def check(q, memory, placement, C, **options):
    from ziphius.ops.triton.paged import latent_decode

    got = latent_decode(q, memory, placement, C, 0.3, **options)
    close(got, paged_attention_reference(q, memory, placement, latent(C, memory.shape[1] - C), 0.3))
    return got


@few
@given(
    seed=seeds, H=st.integers(1, 20), C=st.integers(1, 40), R=st.integers(1, 9).map(lambda pairs: 2 * pairs),
    block_size=st.integers(1, 9), dtype=st.sampled_from([torch.float32, torch.bfloat16]), room=st.integers(0, 3),
    brings=st.lists(st.tuples(st.integers(0, 80), st.integers(1, 3)), min_size=1, max_size=3),
)  # fmt: skip
def test_any_mix_of_prompts_and_answers(seed, H, C, R, block_size, dtype, room, brings):
    q, memory, placement = step_of(brings, block_size, H, C, R, dtype, seed, room)
    with ops.backend("triton"):
        got = paged_attention(q, memory, placement, latent(C, memory.shape[1] - C), 0.3)
    close(got, paged_attention_reference(q, memory, placement, latent(C, memory.shape[1] - C), 0.3))


def grouped_step(brings, block_size, G, sharing, K, dtype, seed=0):
    return *step_of(brings, block_size, G * sharing, K, 0, dtype, seed, layout=shared(G, K)), shared(G, K)


def check_grouped(q, memory, placement, layout):
    with ops.backend("triton"):
        got = paged_attention(q, memory, placement, layout, 0.3)
    close(got, paged_attention_reference(q, memory, placement, layout, 0.3))
    return got


@few
@given(
    seed=seeds, G=st.integers(1, 3), sharing=st.sampled_from([1, 3, 7, 17]), K=st.integers(1, 40),
    block_size=st.integers(1, 9), dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    brings=st.lists(st.tuples(st.integers(0, 30), st.integers(1, 3)), min_size=1, max_size=3),
)  # fmt: skip
def test_any_mix_with_shared_heads(seed, G, sharing, K, block_size, dtype, brings):
    check_grouped(*grouped_step(brings, block_size, G, sharing, K, dtype, seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("G", "sharing", "K"), [(3, 3, 64), (2, 7, 128)])
def test_shared_heads_of_published_shapes(G, sharing, K, dtype):
    check_grouped(*grouped_step([(69, 1), (0, 1), (33, 2)], 16, G, sharing, K, dtype))


def test_shared_heads_of_a_token_are_its_own():
    """The same bits alone and among others, in splits and with wider tables."""
    q, memory, placement, layout = grouped_step([(600, 1), (5, 1), (90, 2)], 8, 2, 3, 16, torch.float32)
    together = check_grouped(q, memory, placement, layout)
    wider = torch.nn.functional.pad(placement.tables_BM, (0, 100))
    for n in range(len(q)):
        lone = Placement(placement.rows_N[n : n + 1], placement.positions_N[n : n + 1], placement.slots_N, wider, 8)
        assert torch.equal(check_grouped(q[n : n + 1], memory, lone, layout)[0], together[n])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("H", "C", "R"), [(16, 512, 64), (3, 96, 32), (2, 600, 64), (40, 24, 8)])
def test_published_and_odd_shapes(H, C, R, dtype):
    check(*step_of([(69, 1), (0, 1), (33, 2)], 16, H, C, R, dtype), C)


def test_blocks_of_many_heads():
    from ziphius.ops.triton.paged import Tiles

    check(*step_of([(40, 1), (7, 1)], 16, 130, 32, 16, torch.bfloat16), 32, tiles=Tiles(64, 32, 8, 2))


@pytest.mark.parametrize("length", [255, 256, 257, 512, 1000])
def test_long_sequences_are_merged_from_splits(length):
    check(*step_of([(length - 1, 1), (2, 1)], 16, 2, 16, 4, torch.float32), 16)


@pytest.mark.parametrize(("length", "most"), [(700, 128), (300, 4), (290, 3)])
def test_many_splits_and_longer_ones(monkeypatch, length, most):
    """More than the merge takes at a time; and where there may not be so many, they are longer."""
    from ziphius.ops.triton import paged

    monkeypatch.setattr(paged.Splits, "of", lambda heads: paged.Splits(32, most))
    check(*step_of([(length - 1, 1), (40, 1), (2, 1)], 16, 2, 16, 4, torch.float32), 16)


def test_there_are_never_more_splits_than_room():
    from ziphius.ops.triton.paged import Splits

    for heads in (1, 16, 17, 64, 128, 1000):
        splits = Splits.of(heads)
        for length in (1, 255, 256, 257, 1024, 1025, 32768, 32769, 163840, 10**6):
            step = splits.length * ceil(ceil(length / splits.length) / splits.most)
            assert ceil(length / step) <= splits.count(length) <= splits.most


def test_a_tokens_result_is_its_own():
    """The same bits alone and among others, with narrow tables and with wide ones."""
    brings = [(300, 1), (5, 1), (90, 2)]
    q, memory, placement = step_of(brings, 8, 4, 16, 4, torch.float32)
    together = check(q, memory, placement, 16)
    wider = torch.nn.functional.pad(placement.tables_BM, (0, 100))
    for n in range(len(q)):
        lone = Placement(placement.rows_N[n : n + 1], placement.positions_N[n : n + 1], placement.slots_N, wider, 8)
        assert torch.equal(check(q[n : n + 1], memory, lone, 16)[0], together[n])


def test_who_takes_the_kernel():
    q, memory = torch.zeros(1, 2, 40), torch.zeros(8, 40)
    assert not uses_kernel(q, memory, latent(32), 1)
    with ops.backend("triton"):
        if DEVICE.type == "cuda":
            with pytest.raises(
                RuntimeError, match=r"takes fp32 and bf16 CUDA tensors, not Tensor torch.float32 on cpu"
            ):
                uses_kernel(q, memory, latent(32), 1)
        else:
            assert uses_kernel(q, memory, latent(32), 1)
            assert uses_kernel(q, memory, latent(32), 0)  # asked for by name, also for prompts
            assert uses_kernel(q.bfloat16(), memory.bfloat16(), latent(512), 1)
            assert not uses_kernel(q, memory, latent(512), 1)  # no room for so wide a latent in fp32


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE.type == "cpu", reason="needs a CUDA device")
def test_on_a_gpu_decoding_takes_it_and_prompts_do_not():
    q, memory = torch.zeros(1, 2, 40, device=DEVICE), torch.zeros(8, 40, device=DEVICE)
    assert uses_kernel(q, memory, latent(32), 1)
    assert not uses_kernel(q, memory, latent(32), 9)
    assert not uses_kernel(q, memory, latent(32), 0)
