import torch
from hypothesis import given
from hypothesis import strategies as st

from ziphius import ops
from ziphius.ops.paged import paged_attention
from ziphius.ops.placement import Placement

from .compare import close, few, latent, normal, seeds


@few
@given(
    seed=seeds, H=st.integers(1, 5), C=st.integers(1, 40), R=st.integers(1, 4).map(lambda pairs: 2 * pairs),
    block_size=st.integers(1, 9), dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    brings=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 7)), min_size=1, max_size=5),
)  # fmt: skip
def test_any_mix_of_prompts_and_answers(seed, H, C, R, block_size, brings, dtype):
    """`brings`: of each sequence, tokens already stored and tokens new in this step."""
    generator = torch.Generator().manual_seed(seed)
    blocks = -(-max(sum(pair) for pair in brings) // block_size)
    tables = torch.randperm(len(brings) * blocks, generator=generator).view(len(brings), blocks).int()
    rows = torch.tensor([row for row, (_, new) in enumerate(brings) for _ in range(new)], dtype=torch.int32)
    positions = torch.cat([torch.arange(old, old + new) for old, new in brings])
    placement = Placement.of(rows, positions, tables, block_size)
    q = normal(seed, len(rows), H, C + R, dtype=dtype)
    memory = normal(seed + 1, len(brings) * blocks * block_size, C + R, dtype=dtype)
    with ops.backend("reference"):
        expected = paged_attention(q, memory, placement, latent(C, R), 0.3)
    for name in ("torch", "auto"):
        with ops.backend(name):
            close(paged_attention(q, memory, placement, latent(C, R), 0.3), expected)


def test_what_others_hold_is_not_seen():
    placement = Placement.of(
        torch.tensor([0, 1], dtype=torch.int32), torch.tensor([2, 1]), torch.tensor([[0], [1]], dtype=torch.int32), 4
    )
    q, memory = normal(0, 2, 2, 6), normal(1, 8, 6)
    out = paged_attention(q, memory, placement, latent(4, 2), 1.0)
    memory[[3, 6, 7]] = 99.0
    assert torch.equal(paged_attention(q, memory, placement, latent(4, 2), 1.0), out)
