"""Drafts change how fast tokens come, and never which."""

import itertools
import math
from collections import Counter

import pytest
import torch

from ziphius.engine.complete import complete
from ziphius.engine.engine import Engine
from ziphius.engine.pace import Pace
from ziphius.engine.settings import EngineSettings

from .conftest import PROMPTS, ask, make_model, naive, small


@pytest.fixture(scope="module")
def likely(tokenizer):
    """A model whose prediction module is often right: both hang mostly on the newest token, each with its own noise."""
    model = make_model(tokenizer.vocab_size, max_position_embeddings=256)
    width = model.config.hidden_size
    with torch.no_grad():
        for block in [*model.model.layers, model.mtp[0].block]:
            for name, parameter in block.named_parameters():
                if "o_proj" in name or "down" in name:
                    parameter.mul_(0.005)
        model.mtp[0].eh_proj.weight.zero_()
        model.mtp[0].eh_proj.weight[:, :width] = torch.eye(width)
        model.lm_head.weight.copy_(torch.randn(model.lm_head.weight.shape, generator=torch.Generator().manual_seed(1)))
    return model


def run(model, requests, speculation, **settings):
    engine = Engine(model, None, small(blocks=700, speculation=speculation, **settings))
    return [[(c.tokens, c.finished) for c in row] for row in complete(engine, requests)], engine.stats()


@pytest.mark.parametrize("depth", [1, 3])
def test_greedy_decoding_is_the_same_over_thousands_of_tokens(likely, depth):
    requests = [ask([first, first + 1], max_new_tokens=180) for first in range(3, 19)]
    plain, before = run(likely, requests, "off")
    found, after = run(likely, requests, depth)
    assert found == plain
    assert sum(len(tokens) for ((tokens, _),) in found) == 16 * 180
    assert 0.3 < after.acceptance < 0.99
    assert before.acceptance is None
    assert after.steps < 0.8 * before.steps


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_two_modules_draft_in_a_chain(tokenizer, depth):
    """Each draft is what V3's equations give for all tokens before it, however these were read and drafted."""
    model = make_model(tokenizer.vocab_size, num_nextn_predict_layers=2)
    requests = [ask([first, *range(3, 20)], max_new_tokens=20) for first in (5, 9)]
    engine = Engine(model, None, small(speculation=depth, max_rows=2, max_batch_tokens=2 * (1 + depth)))
    for request in requests:
        engine.add(request)
    seen = 0
    while engine.has_work:
        engine.step()
        for sequence in engine.scheduler.running:
            drafts = sequence.drafts[:2]  # a third is the second module's once more
            if drafts:
                tokens = torch.tensor([sequence.tokens + drafts[:-1]])
                with torch.no_grad():
                    states = model.mtp_hidden(model.hidden(tokens), tokens)
                    logits = [model.lm_head(state[0, len(sequence.tokens) - 2]) for state in states[: len(drafts)]]
                assert drafts == [int(row.argmax()) for row in logits]
                seen += len(drafts) == min(depth, 2)
    assert seen > 10
    assert run(model, requests, depth)[0] == run(model, requests, "off")[0]


def test_three_modules_go_on_from_a_cached_prompt(tokenizer):
    model = make_model(tokenizer.vocab_size, num_nextn_predict_layers=3)
    requests = [ask([5, *range(3, last)], max_new_tokens=20) for last in range(16, 22)]
    plain = run(model, requests, "off")[0]
    for widest in range(4, 9):  # so that the last chunks of prompts are of all lengths
        engine = Engine(model, None, small(speculation=3, max_rows=1, max_batch_tokens=widest))
        found = [[(c.tokens, c.finished) for c in complete(engine, [request])[0]] for request in requests]
        assert engine.stats().hit_tokens > 60
        assert found == plain


def test_sampled_tokens_are_the_same_too(likely):
    requests = [
        ask([first], samples=2, max_new_tokens=60, temperature=t, top_p=p, stop_token_ids=(5, 6, 7))
        for first, t, p in itertools.product((3, 40, 77), (0.6, 1.0), (1.0, 0.9))
    ]
    plain, _ = run(likely, requests, "off", max_rows=32)
    found, stats = run(likely, requests, 2, max_rows=32, max_batch_tokens=96)
    assert found == plain
    assert any(finished for row in found for _, finished in row)
    assert stats.acceptance > 0.2


def test_the_distribution_is_exact(likely):
    """χ² of the first three tokens together, of the three likeliest each, with drafts for the second and third."""
    n, prompt = 6000, [5, 9, 11]
    request = ask(prompt, samples=n, temperature=1.3, top_k=3, max_new_tokens=4)
    found, stats = run(likely, [request], 2, max_rows=500, max_batch_tokens=1500)
    counts = Counter(tuple(tokens[:3]) for tokens, _ in found[0])
    assert stats.accepted_tokens > n / 2

    def expand(tokens, share):
        if len(tokens) == 3:
            return {tuple(tokens): share}
        with torch.no_grad():
            logits = likely(torch.tensor([prompt + tokens])).logits[0, -1] / 1.3
        best = logits.topk(3)
        parts = torch.softmax(best.values, -1).tolist()
        rest = [expand([*tokens, t], share * p) for t, p in zip(best.indices.tolist(), parts, strict=True)]
        return {key: value for part in rest for key, value in part.items()}

    expected = expand([], 1.0)
    assert set(counts) <= set(expected)
    wide = {key: share for key, share in expected.items() if n * share >= 5}
    chi2 = sum((counts[key] - n * share) ** 2 / (n * share) for key, share in wide.items())
    assert len(wide) > 10
    assert chi2 < len(wide) + 5 * math.sqrt(2 * len(wide))


def test_samples_start_at_the_prompt_and_not_at_a_draft_behind_it(likely):
    """A prompt whose last token is read alone has drafts by then, as an answer has."""
    for length in range(2, 10):
        prompt = [*PROMPTS[2], 33][:length]
        for budget in (4, 6):
            (samples,), _ = run(likely, [ask(prompt, samples=3)], 1, max_rows=2, max_batch_tokens=budget)
            assert samples == 3 * [(naive(likely, prompt, 12).tokens, False)], (length, budget)


def test_acceptance_is_told_per_request(likely):
    engine = Engine(likely, None, small(speculation=2))
    engine.add(ask([5, 9], max_new_tokens=40))
    updates = []
    while engine.has_work:
        updates += engine.step()
    last, stats = updates[-1], engine.stats()
    assert 0 < last.accepted_drafts < last.drafted
    assert (last.accepted_drafts, last.drafted) == (stats.accepted_tokens, stats.drafted_tokens)
    assert sum(len(update.token_ids) for update in updates) == 40
    assert max(len(update.token_ids) for update in updates) > 1


def test_drafts_need_a_module_to_make_them(tokenizer):
    model = make_model(tokenizer.vocab_size, num_nextn_predict_layers=0)
    with pytest.raises(ValueError, match=r"no prediction module .* leave it 'auto' or 'off'"):
        Engine(model, None, small(speculation=1))
    tokens = [c.tokens for (c,) in complete(Engine(model, None, small(speculation="auto")), [ask(PROMPTS[0])])]
    assert len(tokens[0]) == 12


# --- when it pays ----------------------------------------------------------------------------------------------------


def settle(pace, rows, read, draft, right, steps=400):
    """Let it live through `steps` steps of a machine with these costs; the depth of the last hundred."""
    depths = []
    for _ in range(steps):
        depth = pace.depth(rows)
        pace.note_step(rows * (1 + depth), read(rows * (1 + depth)))
        if depth:
            pace.note_drafting(rows, depth, depth * draft(rows))
            pace.note_drafts([depth] * 100, [min(place % 10 < right * 10 and depth, depth) for place in range(100)])
        depths.append(depth)
    return depths[-100:]


def auto():
    return Pace(EngineSettings(speculation="auto"), layers=4, modules=1)


def test_it_drafts_where_more_tokens_cost_nothing_more():
    assert min(settle(auto(), 1, lambda n: 1.0, lambda n: 0.1, right=0.9)) >= 1


def test_it_stops_where_every_token_has_its_price():
    assert set(settle(auto(), 64, lambda n: 0.1 * n, lambda n: 0.03 * n, right=0.5)) == {0}


def test_it_stops_where_drafts_are_wrong():
    assert set(settle(auto(), 1, lambda n: 1.0, lambda n: 0.1, right=0.0)) == {0}


def test_it_tries_again_after_a_while():
    pace = auto()
    assert set(settle(pace, 1, lambda n: 1.0, lambda n: 0.1, right=0.0)) == {0}
    assert max(settle(pace, 1, lambda n: 1.0, lambda n: 0.1, right=0.9, steps=2500)) >= 1


def test_it_never_drafts_more_than_a_step_may_hold():
    pace = Pace(EngineSettings(speculation="auto", max_rows=100, max_batch_tokens=150), layers=4, modules=1)
    assert set(settle(pace, 100, lambda n: 1.0, lambda n: 0.0, right=1.0)) == {0}
