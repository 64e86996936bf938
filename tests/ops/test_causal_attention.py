import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ziphius import ops
from ziphius.ops import attention
from ziphius.ops.attention import causal_mask, segment_mask

from .compare import agree, close, few, normal, seeds, sizes


def qkv(seed, B, T, H, K, V, dtype=torch.float32, G=None):
    shapes = (B, T, H, K), (B, T, G or H, K), (B, T, G or H, V)
    return [normal(seed + i, *shape, dtype=dtype) for i, shape in enumerate(shapes)]


def run(scale, segments=None):
    return lambda q, k, v: ops.causal_attention(q, k, v, scale, segments)


def random_segments(seed, B, T, changes=0.5):
    """Numbers of packed samples, the last of some rows being padding."""
    generator = torch.Generator().manual_seed(seed)
    segments = (torch.rand(B, T, generator=generator) < changes).long().cumsum(1)
    return torch.where((segments == segments[:, -1:]) & (torch.arange(B) % 2 == 1).unsqueeze(1), -1, segments)


@few
@given(
    B=st.integers(1, 3), T=st.integers(1, 20), G=st.integers(1, 3), share=st.integers(1, 3), K=sizes, V=sizes,
    seed=seeds, dtype=st.sampled_from([torch.float32, torch.bfloat16]), packed=st.booleans(),
)  # fmt: skip
def test_backends_equal_reference(B, T, G, share, K, V, seed, dtype, packed):
    segments = random_segments(seed, B, T) if packed else None
    agree(run(0.3, segments), *qkv(seed, B, T, G * share, K, V, dtype, G))


def test_heads_that_share_keys_are_as_if_each_had_its_own():
    q, k, v = qkv(0, 2, 7, 6, 5, 4, G=2)
    own = run(0.3)(q, *(x[:, :, [0, 0, 0, 1, 1, 1]] for x in (k, v)))
    close(run(0.3)(q, k, v), own)


@pytest.mark.parametrize("G", [1, 3])
@pytest.mark.parametrize("packed", [False, True])
def test_the_flash_kernel_equals_reference(packed, G, monkeypatch):
    """What long sequences take on a CPU."""
    monkeypatch.setattr(attention, "_CPU_FLASH_LENGTH", 0)
    segments = torch.tensor([[0] * 5 + [1] * 7, [0] * 12]) if packed else None
    agree(run(0.3, segments), *qkv(0, 2, 12, 3, 6, 4, G=G))


@pytest.mark.parametrize("packed", [False, True])
def test_gradient(packed):
    segments = torch.tensor([[0, 0, 1, 1, 1]]) if packed else None
    inputs = tuple(x.double().requires_grad_() for x in qkv(0, 1, 5, 2, 3, 2, G=1))
    assert torch.autograd.gradcheck(run(0.5, segments), inputs)


def test_first_token_sees_itself_only():
    q, k, v = qkv(0, 1, 4, 2, 3, 3)
    close(run(1.0)(q, k, v)[:, 0], v[:, 0])


def test_masks():
    inf = float("-inf")
    assert causal_mask(2, torch.zeros(1)).tolist() == [[0, inf], [0, 0]]
    assert segment_mask(torch.tensor([[0, 0, 1]])).tolist() == [[[0, inf, inf], [0, 0, inf], [inf, inf, 0]]]
    same = segment_mask(torch.zeros(1, 4, dtype=torch.int64))
    assert torch.equal(same[0], causal_mask(4, torch.zeros(1)))
    assert torch.isfinite(segment_mask(torch.tensor([[0, -1, -1]])).amax(-1)).all(), "padding sees something"


def test_autocast():
    q, k, v = (x.bfloat16() for x in qkv(0, 2, 9, 2, 4, 4))
    agree(run(0.4), q, k, v, autocast=True)


@few
@given(
    B=st.integers(1, 3), T=st.integers(1, 20), H=st.integers(1, 4), N=sizes, pairs=sizes, V=sizes, seed=seeds,
    dtype=st.sampled_from([torch.float32, torch.bfloat16]), packed=st.booleans(),
)  # fmt: skip
def test_latent_attention_equals_reference(B, T, H, N, pairs, V, seed, dtype, packed):
    segments = random_segments(seed, B, T) if packed else None
    phase = normal(seed, 1, T, pairs)
    shapes = (B, T, H, N + 2 * pairs), (B, T, H, N + V), (B, T, 2 * pairs)
    inputs = [normal(seed + i, *shape, dtype=dtype) for i, shape in enumerate(shapes)]
    agree(lambda q, kv, k: ops.latent_attention(q, kv, k, phase.cos(), phase.sin(), 0.3, segments), *inputs)


def test_latent_attention_is_rotation_then_attention():
    q, kv, k_rope, phase = normal(0, 1, 6, 2, 7), normal(1, 1, 6, 2, 8), normal(2, 1, 6, 4), normal(3, 1, 6, 2)
    cos, sin = phase.cos(), phase.sin()
    q_turned = torch.cat([q[..., :3], ops.apply_rope(q[..., 3:], cos.unsqueeze(2), sin.unsqueeze(2))], dim=-1)
    k_turned = ops.apply_rope(k_rope, cos, sin).unsqueeze(2).expand(-1, -1, 2, -1)
    k = torch.cat([kv[..., :3], k_turned], dim=-1)
    expected = ops.causal_attention(q_turned, k, kv[..., 3:], 0.5)
    close(ops.latent_attention(q, kv, k_rope, cos, sin, 0.5), expected)
