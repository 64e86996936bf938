"""What the engine does, it does for networks with grouped attention too: answers are those of whole forward passes."""

from __future__ import annotations

import pytest
import torch

from tests.model.variants import GROUPED, network
from ziphius import ops
from ziphius.engine import passes as passes_module
from ziphius.engine.complete import complete
from ziphius.engine.engine import Engine
from ziphius.ops import triton as kernels

from .conftest import PROMPTS, ask, naive, small
from .test_forward import needs_kernels

NAMES = ("Llama 3.1", "Qwen2.5, YaRN, tied", "Qwen3", "Qwen3, some dense")
LONG = [2 + 7 * place % 90 for place in range(40)]


def sharp(name):
    """A network whose most likely tokens stand apart."""
    model = network(GROUPED[name])
    with torch.no_grad():
        model.model.norm.weight.mul_(4)
    return model


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("name", NAMES)
def test_any_traffic_gives_the_answers_of_whole_passes(name, backend):
    """Prompts in chunks beside answers, several samples, and a prefix that the second round finds in the cache."""
    model = sharp(name)
    prompts = [[token % 97 for token in prompt] for prompt in [*PROMPTS, LONG, [*LONG, 5]]]
    with ops.backend(backend):
        engine = Engine(model, None, small(max_batch_tokens=20))
        for _ in range(2):
            found = complete(engine, [ask(prompt, max_new_tokens=6, samples=2) for prompt in prompts])
            for prompt, samples in zip(prompts, found, strict=True):
                expected = naive(model, prompt, 6)
                for completion in samples:
                    assert completion.tokens == expected.tokens
                    assert completion.logprobs == pytest.approx(expected.logprobs, abs=1e-3)
    assert engine.stats().hit_tokens > len(LONG)


@needs_kernels
def test_company_changes_no_bit():
    """Not even without `batch_invariant`, in the native step."""
    model = sharp("Qwen2.5, YaRN, tied")
    alone = complete(Engine(model, None, small()), [ask(LONG, max_new_tokens=6)])
    beside = [ask(prompt, max_new_tokens=6) for prompt in (LONG, [1, 2], [3])]
    together = complete(Engine(model, None, small()), beside)
    assert together[0][0].logprobs == alone[0][0].logprobs


@pytest.mark.skipif(kernels.why_not() is not None, reason=str(kernels.why_not()))
@pytest.mark.skipif(not kernels.interpreted(), reason="TRITON_INTERPRET is not set")
def test_recorded_steps_serve_shared_heads(monkeypatch):
    played = []
    monkeypatch.setattr(passes_module, "recorder_for", lambda device: lambda work: lambda: (played.append(1), work()))
    model = sharp("Llama 3.1")
    with ops.backend("triton"):
        found = complete(Engine(model, None, small()), [ask(prompt[:4], max_new_tokens=4) for prompt in PROMPTS[:2]])
    assert [c.tokens for (c,) in found] == [naive(model, prompt[:4], 4).tokens for prompt in PROMPTS[:2]]
    assert played
