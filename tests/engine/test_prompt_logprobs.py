"""The log-probabilities of prompts: those of whole forward passes, however the prompt came to be read."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ziphius.engine import scoring
from ziphius.engine.engine import Engine
from ziphius.engine.request import Request, Update
from ziphius.ops.backend import backend

from .conftest import ask, make_model, naive, small

MODEL = make_model(300)
SHARED = [7, 3, 99, 4, 17, 60, 61, 8, 9, 10, 33, 3, 5]
PROMPTS = [[7], [7, 3], SHARED, [*SHARED, 40, 41], [*SHARED, 42], [*SHARED[:8], 50, 51, 52, 53, 54, 55, 56], SHARED[:9]]


def scored(prompt: list[int], top: int | None = 2, **given: object) -> Request:
    return dataclasses.replace(ask(prompt, **given), prompt_logprobs=top)


def run(engine: Engine, requests: list[Request]) -> list[list[Update]]:
    """The updates of each request."""
    ids = {engine.add(request): place for place, request in enumerate(requests)}
    found: list[list[Update]] = [[] for _ in requests]
    while engine.has_work:
        for update in engine.step():
            found[ids[update.id]].append(update)
    return found


def check(update: Update, model, prompt: list[int], top: int, tolerance: float = 1e-4) -> None:
    """The update says of the prompt what a whole forward pass does."""
    with torch.no_grad():
        expected = torch.log_softmax(model(torch.tensor([prompt])).logits[0].float(), -1)[:-1]
    own = expected.gather(1, torch.tensor(prompt[1:]).unsqueeze(1)).squeeze(1)
    assert update.prompt_logprobs[0] is None
    assert update.prompt_logprobs[1:] == pytest.approx(own.tolist(), abs=tolerance)
    assert len(update.prompt_top_logprobs[0]) == 0
    assert len(update.prompt_top_logprobs) == len(prompt)
    for told, row in zip(update.prompt_top_logprobs[1:], expected, strict=True):
        assert [logprob for _, logprob in told] == pytest.approx(row.topk(top).values.tolist(), abs=tolerance)
        assert [float(row[token]) for token, _ in told] == pytest.approx([lp for _, lp in told], abs=tolerance)


@pytest.mark.parametrize("kernels", ["native", "torch"])
@pytest.mark.parametrize("budget", [64, 4])
def test_scores_are_those_of_whole_forward_passes(kernels, budget):
    with backend(kernels):
        updates = run(Engine(MODEL, None, small(max_batch_tokens=budget, max_rows=4)), [scored(p) for p in PROMPTS])
    for prompt, (first, *rest) in zip(PROMPTS, updates, strict=True):
        check(first, MODEL, prompt, 2)
        assert all(update.prompt_logprobs is None for update in rest)  # they are told once
        assert [token for u in (first, *rest) for token in u.token_ids] == naive(MODEL, prompt, 12).tokens


def test_in_bf16():
    model = make_model(300).to(torch.bfloat16)
    (update,) = run(Engine(model, None, small()), [scored(SHARED, max_new_tokens=0)])[0]
    check(update, model, SHARED, 2, tolerance=0.15)


def test_with_nothing_to_draw_it_ends_at_the_prompt():
    for request in (scored(SHARED, max_new_tokens=0, samples=3), ask(SHARED, max_new_tokens=0, samples=3)):
        engine = Engine(MODEL, None, small())
        (updates,) = run(engine, [request])
        assert [(u.sample, u.token_ids, u.finish_reason) for u in updates] == [(s, [], "length") for s in range(3)]
        assert (engine.stats().generated_tokens, engine.stats().blocks_used) == (0, 0)
        for update in updates:
            if request.prompt_logprobs is None:
                assert update.prompt_logprobs is None
            else:
                check(update, MODEL, SHARED, 2)


def test_a_prompt_may_fill_the_context():
    prompt = [3 + place % 50 for place in range(MODEL.config.max_position_embeddings)]
    (update,) = run(Engine(MODEL, None, small()), [scored(prompt, max_new_tokens=0)])[0]
    check(update, MODEL, prompt, 2)


def test_prompts_that_begin_alike_are_one_reading():
    """Those that come together wait for the first; what differs is read, and at most the block before it."""
    engine = Engine(MODEL, None, small())
    prompts = [[*SHARED[:12], 40 + place, 41] for place in range(4)]
    for prompt, (update,) in zip(prompts, run(engine, [scored(p, max_new_tokens=0) for p in prompts]), strict=True):
        check(update, MODEL, prompt, 2)
    assert engine.stats().miss_tokens == 14 + 3 * (2 + 4)
    assert engine.stats().steps == 2
    run(engine, [ask([*SHARED[:12], 44])])
    assert engine.stats().hit_tokens == 3 * 8 + 12  # who wants no scores takes every block


@pytest.mark.parametrize(("owners", "steps"), [("aa", 2), ("ab", 1)])
def test_nobody_waits_at_anothers_pace(owners, steps):
    engine = Engine(MODEL, None, small())
    run(engine, [dataclasses.replace(scored(SHARED, max_new_tokens=0), owner=owner) for owner in owners])
    assert engine.stats().steps == steps


def test_cached_blocks_without_the_scores_are_read_again_once():
    engine = Engine(MODEL, None, small())
    run(engine, [ask(SHARED)])
    for top, hits in ((2, 0), (2, 8), (1, 8), (4, 0), (4, 8), (2, 8)):
        before = engine.stats().hit_tokens
        (update,) = run(engine, [scored(SHARED, top, max_new_tokens=0)])[0]
        check(update, MODEL, SHARED, top)
        assert engine.stats().hit_tokens - before == hits, top
    for _ in range(2):  # more than a block keeps
        (update,) = run(engine, [scored(SHARED, 20, max_new_tokens=0)])[0]
        check(update, MODEL, SHARED, 20)


def test_logits_are_made_in_slices(monkeypatch):
    engine = Engine(MODEL, None, small())
    sizes = []
    whole = engine.stepper.passes.logits

    def logits(hidden_ND):
        sizes.append(len(hidden_ND))
        return whole(hidden_ND)

    monkeypatch.setattr(engine.stepper.passes, "logits", logits)
    monkeypatch.setattr(scoring, "_NUMBERS_AT_ONCE", 5 * MODEL.config.vocab_size)
    (update,) = run(engine, [scored(SHARED, max_new_tokens=0)])[0]
    check(update, MODEL, SHARED, 2)
    assert max(sizes) == 5
    assert sum(sizes) == len(SHARED) - 1


def test_new_weights_score_anew():
    model = make_model(300)
    engine = Engine(model, None, small(max_batch_tokens=4, max_rows=4))
    id = engine.add(scored(SHARED, max_new_tokens=0))
    engine.step()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9)
    engine.weights_changed()
    updates = []
    while engine.has_work:
        updates += engine.step()
    assert [update.id for update in updates] == [id]
    check(updates[0], model, SHARED, 2)


def test_numbers_that_are_not_finite_end_it():
    model = make_model(300)
    with torch.no_grad():
        model.model.embed_tokens.weight[99] = torch.nan
    engine = Engine(model, None, small(max_batch_tokens=4, max_rows=4))
    bad, good = run(engine, [scored(SHARED, max_new_tokens=0), scored([5, 9, 11], max_new_tokens=0)])
    assert [(u.finish_reason, u.error) for u in bad] == [("error", "the network gave no finite numbers")]
    check(good[0], model, [5, 9, 11], 2)
    assert engine.stats().blocks_used == 0


def test_more_alternatives_than_are_given_are_refused():
    with pytest.raises(ValueError, match="prompt_logprobs is 65"):
        Engine(MODEL, None, small()).add(scored(SHARED, 65))


TRAFFIC = st.lists(
    st.tuples(
        st.integers(0, len(PROMPTS) - 1),
        st.sampled_from([None, None, 0, 1, 3]),  # alternatives
        st.sampled_from([0, 1, 6]),  # tokens
        st.integers(1, 3),  # samples
        st.integers(0, 2),  # priority
        st.sampled_from("aab"),  # owner
        st.integers(0, 3),  # steps before the next comes
        st.sampled_from([None] * 6 + ["cancel", "restore"]),  # what happens then
    ),
    min_size=1,
    max_size=8,
)


@given(TRAFFIC, st.integers(8, 14), st.sampled_from([0, 3, 40]), st.sampled_from(["off", 1, 2]), st.booleans())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_any_traffic_gives_the_scores_of_whole_forward_passes(traffic, blocks, spare, speculation, caching):
    """Pools too small for all, priorities, owners, drafts, chunks, cancelled ones, steps that fail: all end, with what
    a lone run gives."""
    torch.set_num_threads(1)
    rows = 3
    budget = rows * (1 if speculation == "off" else 1 + speculation) + spare
    chosen = small(blocks=blocks, max_rows=rows, max_batch_tokens=budget, speculation=speculation, prefix_cache=caching)
    engine = Engine(MODEL, None, chosen)
    asked, firsts, tokens, gone = {}, {}, {}, set()

    def hear(updates):
        for update in updates:
            key = update.id, update.sample
            firsts.setdefault(key, update)
            tokens.setdefault(key, []).extend(update.token_ids)
            if update.finish_reason == "cancelled":
                gone.add(key)

    for place, top, new, samples, priority, owner, steps, then in traffic:
        request = scored(PROMPTS[place], top, max_new_tokens=new, samples=samples, priority=priority)
        asked[engine.add(dataclasses.replace(request, owner=owner))] = request
        for _ in range(steps):
            hear(engine.step())
        if then == "cancel":
            engine.cancel(min(asked))
        elif then == "restore":
            engine.restore()
    for _ in range(1000):
        if engine.has_work:
            hear(engine.step())
    assert not engine.has_work
    assert engine.stats().blocks_used == 0
    for id, request in asked.items():
        expected = naive(MODEL, list(request.prompt), request.settings.max_new_tokens).tokens
        for sample in range(request.samples):
            key = id, sample
            assert tokens[key] == (expected[: len(tokens[key])] if key in gone else expected), key
            if request.prompt_logprobs is None:
                assert firsts[key].prompt_logprobs is None
            elif tokens[key] or key not in gone:
                check(firsts[key], MODEL, list(request.prompt), request.prompt_logprobs)
