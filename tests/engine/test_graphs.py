"""Recorded steps: played as plain calls on the CPU, where Triton's interpreter runs the decoding kernel."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from ziphius import ops
from ziphius.engine import passes as passes_module
from ziphius.engine.cache import PagedMemory
from ziphius.engine.complete import complete
from ziphius.engine.engine import Engine
from ziphius.engine.graphs import SIZES, StepGraphs
from ziphius.engine.passes import Passes
from ziphius.ops import triton as kernels

from .conftest import PROMPTS, ask, make_model, naive, small

needs_triton = pytest.mark.skipif(kernels.why_not() is not None, reason=str(kernels.why_not()))
needs_interpreter = pytest.mark.skipif(not kernels.interpreted(), reason="TRITON_INTERPRET is not set")


class Eager:
    """Keeps count of what is recorded and played."""

    def __init__(self):
        self.recorded = self.played = 0

    def __call__(self, work):
        self.recorded += 1

        def play():
            self.played += 1
            work()

        return play


@pytest.fixture
def recorder(monkeypatch):
    eager = Eager()
    monkeypatch.setattr(passes_module, "recorder_for", lambda device: eager)
    return eager


@needs_triton
@needs_interpreter
def test_recorded_steps_give_the_tokens_of_plain_ones(model, recorder):
    """Prompts, answers that end at different times, samples of one prompt: every size is met with padding."""
    requests = [ask(p, max_new_tokens=3 + place, samples=1 + place % 2) for place, p in enumerate(PROMPTS)]
    with ops.backend("triton"):
        found = complete(Engine(model, None, small()), requests)
    for request, samples in zip(requests, found, strict=True):
        expected = naive(model, list(request.prompt), request.settings.max_new_tokens)
        for completion in samples:
            assert completion.tokens == expected.tokens
            assert completion.logprobs == pytest.approx(expected.logprobs, abs=1e-4)
    assert 3 <= recorder.recorded < recorder.played


@needs_triton
@needs_interpreter
def test_drafts_are_read_from_recordings_too(model, recorder):
    with ops.backend("triton"):
        engine = Engine(model, None, small(speculation=2, max_rows=8))
        (found,) = complete(engine, [ask(PROMPTS[0], max_new_tokens=8)])
    assert found[0].tokens == naive(model, PROMPTS[0], 8).tokens
    assert engine.stats().drafted_tokens > 0
    assert recorder.played


@needs_triton
@needs_interpreter
def test_tokens_one_by_one_do_not_share_a_result(model, recorder):
    with ops.backend("triton"):
        found = complete(Engine(model, None, small(batch_invariant=True)), [ask(p, max_new_tokens=3) for p in PROMPTS])
    assert [c.tokens for (c,) in found] == [naive(model, p, 3).tokens for p in PROMPTS]
    assert recorder.recorded == 1


def read(passes, tokens):
    tables = np.array([[0, 1], [2, 3], [4, 5]], np.int32)
    count = len(tokens)
    placement = passes.place(tables, list(range(count)), [0] * count, [1] * count)
    hidden = passes.read(tokens, placement)
    return hidden, passes.logits(hidden)


@needs_triton
@needs_interpreter
def test_changed_weights_are_seen_and_moved_ones_recorded_anew(recorder):
    model = make_model(64)
    passes = Passes(model, PagedMemory(model.config, 6, 4, torch.float32), apart=False)
    plain = Passes(model, PagedMemory(model.config, 6, 4, torch.float32), apart=False)
    plain._graphs = None

    def compare(recorded):
        with ops.backend("triton"), torch.no_grad():
            for got, expected in zip(read(passes, [5, 6, 7]), read(plain, [5, 6, 7]), strict=True):
                torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
        assert recorder.recorded == recorded

    compare(1)
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    compare(1)
    model.lm_head.weight.data = model.lm_head.weight.data * 2
    compare(2)


@needs_triton
@needs_interpreter
def test_what_fills_up_a_step_stands_where_nobody_does(recorder):
    model = make_model(64)
    memory = PagedMemory(model.config, 6, 4, torch.float32)
    passes = Passes(model, memory, apart=False)
    with ops.backend("triton"), torch.no_grad():
        hidden, logits = read(passes, [5, 6, 7])
    assert hidden.shape == (3, model.config.hidden_size)
    assert logits.shape == (3, 64)
    written = memory.data.view(len(memory.data), 7, 4, -1)[0].abs().sum(-1)
    assert (written > 0).nonzero().tolist() == [[0, 0], [2, 0], [4, 0], [6, 0]]  # the last is the spare block


@needs_triton
@needs_interpreter
def test_without_recordings_it_goes_on_and_says_so(model, monkeypatch):
    def refuse(work):
        raise RuntimeError("no graphs\non this device")

    monkeypatch.setattr(passes_module, "recorder_for", lambda device: refuse)
    with ops.backend("triton"), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        (found,) = complete(Engine(model, None, small()), [ask(PROMPTS[0], max_new_tokens=4)])
    assert found[0].tokens == naive(model, PROMPTS[0], 4).tokens
    assert [str(w.message) for w in told if "CUDA graphs" in str(w.message)] == [
        "decoding goes on without CUDA graphs, more slowly: no graphs on this device"
    ]


def test_steps_that_need_other_code_are_left_alone(model):
    memory = PagedMemory(model.config, 6, 4, torch.float32)
    passes = Passes(model, memory, apart=False)
    assert passes._graphs is None  # on a CPU
    graphs = StepGraphs(model, memory, Eager())
    one = passes.place(np.zeros((1, 4), np.int32), [0], [0], [1])
    assert not graphs.take(one)  # the native step
    if kernels.interpreted():
        with ops.backend("triton"):
            assert graphs.take(one)
            many = passes.place(np.zeros((1, 99), np.int32), [0], [0], [SIZES[-1] + 1])
            assert not graphs.take(many)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu(tokenizer, dtype):
    model = make_model(tokenizer.vocab_size).to("cuda", dtype)
    requests = [ask(p, max_new_tokens=3 + place, samples=1 + place % 2) for place, p in enumerate(PROMPTS)]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="decoding goes on")  # nothing may be refused
        engine = Engine(model, None, small())
        found = complete(engine, requests)
    assert engine.stepper.passes._graphs is not None
    assert engine.stepper.passes._graphs._graphs
    with ops.backend("torch"):
        plain = complete(Engine(model, None, small()), requests)
    if dtype == torch.float32:
        assert [[c.tokens for c in samples] for samples in found] == [[c.tokens for c in s] for s in plain]
    for samples, others in zip(found, plain, strict=True):
        for one, two in zip(samples, others, strict=True):
            assert one.logprobs[0] == pytest.approx(two.logprobs[0], abs=1e-3 if dtype == torch.float32 else 0.1)
