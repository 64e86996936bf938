"""The native step against the network's own modules, and what it promises about batches and threads."""

from __future__ import annotations

import pytest
import torch

from tests.model.variants import FAMILIES, GROUPED, network, tokens_of, v3
from ziphius import ops
from ziphius.engine.cache import PagedMemory
from ziphius.engine.forward import draft_hidden, next_logits, step_hidden
from ziphius.model.llama.config import LlamaConfig
from ziphius.model.packed import quantise
from ziphius.ops.native import build
from ziphius.ops.placement import Placement

BLOCK = 4
LENGTHS = [21, 1, 9, 30]

needs_kernels = pytest.mark.skipif(build.library() is None, reason="no C compiler: the native step cannot be built")


def placed(brings, start=None, blocks=9):
    """`brings` tokens of each sequence, beginning at position `start[i]`; blocks lie shuffled."""
    start = start or [0] * len(brings)
    shuffled = torch.randperm(len(brings) * blocks, generator=torch.Generator().manual_seed(1))
    tables = shuffled.view(len(brings), blocks).int()
    rows = torch.tensor([row for row, new in enumerate(brings) for _ in range(new)], dtype=torch.int32)
    positions = torch.cat([torch.arange(first, first + new) for first, new in zip(start, brings, strict=True)])
    return Placement.of(rows, positions, tables, BLOCK)


def in_chunks(model, dtype=torch.float32, backend="auto"):
    """Hidden states of four sequences read in two chunks and then token by token, as one tensor a sequence."""
    memory = PagedMemory(model.config, len(LENGTHS) * 9, BLOCK, dtype)
    memory.data.fill_(1e4)  # what is not the sequence's own must not matter
    sequences = [tokens_of(model.config, (1, length), seed)[0] for seed, length in enumerate(LENGTHS)]
    found: list[list[torch.Tensor]] = [[] for _ in sequences]
    done = [0] * len(sequences)
    with torch.no_grad(), ops.backend(backend):
        while any(d < len(s) for d, s in zip(done, sequences, strict=True)):
            size = 8 if done[0] < 16 else 1
            brings = [min(size, len(s) - d) for d, s in zip(done, sequences, strict=True)]
            tokens = torch.cat([s[d : d + new] for s, d, new in zip(sequences, done, brings, strict=True)])
            hidden = step_hidden(model, tokens, placed(brings, done), memory)
            for row, part in enumerate(hidden.split(brings)):
                found[row] += [part] if len(part) else []
            done = [d + new for d, new in zip(done, brings, strict=True)]
    return [torch.cat(parts) for parts in found], sequences


@needs_kernels
@pytest.mark.parametrize("name", FAMILIES)
def test_equals_whole_forward_passes(name):
    model = network(FAMILIES[name])
    found, sequences = in_chunks(model, backend="native")
    for hidden, tokens in zip(found, sequences, strict=True):
        with torch.no_grad(), ops.backend("reference"):
            expected = model.hidden(tokens.unsqueeze(0))[0]
        torch.testing.assert_close(hidden, expected, rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            torch.testing.assert_close(next_logits(model, hidden), model.lm_head(hidden), rtol=1e-4, atol=1e-5)


def wide(**overrides):
    """Sizes that fill the tiles of a matrix unit."""
    sizes = {"hidden_size": 64, "moe_intermediate_size": 32, "intermediate_size": 96, "kv_lora_rank": 32} | overrides
    return v3(qk_nope_head_dim=16, qk_rope_head_dim=16, v_head_dim=16, q_lora_rank=None, **sizes)


SEVEN = LlamaConfig(
    vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=14,
    num_key_value_heads=2, head_dim=80, max_position_embeddings=256,
)  # fmt: skip
SHAPES = {
    "latent": wide(),
    "three latent heads": wide(kv_lora_rank=80, num_attention_heads=3),
    "low-rank queries": v3(),
    "grouped": GROUPED["Llama 3.1"],
    "with biases": GROUPED["Qwen2.5"],
    "with experts": GROUPED["Qwen3, some dense"],
}


@needs_kernels
@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_in_bf16_it_is_as_near_as_the_torch_path(config):
    model = network(config)
    exact, _ = in_chunks(model, backend="reference")
    half = network(config).bfloat16()
    native, _ = in_chunks(half, torch.bfloat16, "native")
    torch_path, _ = in_chunks(half, torch.bfloat16, "torch")
    error = lambda found: torch.cat([(a - b).float() for a, b in zip(found, exact, strict=True)]).norm()
    assert error(native) <= 1.2 * error(torch_path)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("name", ["latent", "with biases", "with experts", "seven heads a key"])
def test_a_tokens_result_is_its_own(name, dtype):
    """The same bits alone and among others, on one thread and on two, whoever shares the work how."""
    model = network((SHAPES | {"seven heads a key": SEVEN})[name])
    if dtype == torch.int8:
        model, dtype = quantise(model), torch.bfloat16
    else:
        model = model.to(dtype)
    brings = [5, 1, 1, 3, 1, 1, 1, 1, 1, 7, 1, 1]
    tokens = tokens_of(model.config, (1, sum(brings)))[0]
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with torch.no_grad():
                memory = PagedMemory(model.config, len(brings) * 9, BLOCK, dtype)
                hidden = step_hidden(model, tokens, placed(brings), memory)
                results.append(next_logits(model, hidden))
                parts = []
                for row, part in enumerate(tokens.split(brings)):
                    memory = PagedMemory(model.config, 9, BLOCK, dtype)
                    parts.append(next_logits(model, step_hidden(model, part, placed([brings[row]]), memory)))
                results.append(torch.cat(parts))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert torch.equal(other, results[0])


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_drafts_equal_the_prediction_modules(backend):
    model = network(v3(num_nextn_predict_layers=2))
    tokens = tokens_of(model.config, (1, 12))
    with torch.no_grad(), ops.backend(backend):
        main = model.hidden(tokens)
        expected = model.mtp_hidden(main, tokens)
        memory = PagedMemory(model.config, 9, BLOCK, torch.float32)
        first = draft_hidden(model, 1, main[0, :-1], tokens[0, 1:], placed([11]), memory)
        second = draft_hidden(model, 2, first[:-1], tokens[0, 2:], placed([10]), memory)
    torch.testing.assert_close(first, expected[0][0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(second, expected[1][0], rtol=1e-4, atol=1e-5)


@needs_kernels
def test_updates_in_place_are_seen_and_moves_too():
    model = network(v3())
    tokens, placement = tokens_of(model.config, (1, 6))[0], placed([6])
    memory = PagedMemory(model.config, 9, BLOCK, torch.float32)

    @torch.no_grad()
    def both():
        with ops.backend("native"):
            native = step_hidden(model, tokens, placement, memory)
        return native, model.hidden(tokens.unsqueeze(0))[0]

    before, _ = both()
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight.mul_(1.5)
        model.model.layers[2].mlp.gate.e_score_correction_bias.neg_()
    native, expected = both()
    assert not torch.allclose(native, before)
    torch.testing.assert_close(native, expected, rtol=1e-4, atol=1e-5)
    weight = model.model.layers[1].mlp.experts.down_proj
    weight.data = weight.data * 2
    native, expected = both()
    torch.testing.assert_close(native, expected, rtol=1e-4, atol=1e-5)
