import pytest
import torch

from ziphius.engine.complete import Completion, complete
from ziphius.engine.engine import Engine

from .conftest import PROMPTS, ask, make_model, naive, small


def assert_same(one: Completion, two: Completion) -> None:
    assert one.tokens == two.tokens
    assert one.finished == two.finished
    assert one.logprobs == pytest.approx(two.logprobs, abs=1e-4)


@pytest.mark.parametrize(
    "overrides", [{}, {"q_lora_rank": 16, "tie_word_embeddings": True}, {"n_routed_experts": None}]
)
def test_greedy_decoding_equals_whole_forward_passes(tokenizer, overrides):
    model = make_model(tokenizer.vocab_size, **overrides)
    stop = naive(model, PROMPTS[2], 12).tokens[4]  # so that some answers end early
    found = complete(Engine(model, None, small()), [ask(p, stop_token_ids=(stop,), samples=2) for p in PROMPTS])
    expected = [naive(model, prompt, 12, stop) for prompt in PROMPTS]
    for two_samples, two in zip(found, expected, strict=True):
        for one in two_samples:
            assert_same(one, two)
    assert expected[2].finished
    assert len({len(completion.tokens) for completion in expected}) > 1


def test_a_prompt_read_in_chunks_beside_answers(model):
    """A long prompt takes many steps; the answer that runs already gets a token in each."""
    engine = Engine(model, None, small(max_batch_tokens=6, max_rows=4))
    first = engine.add(ask([5, 9, 11], max_new_tokens=20))
    engine.step()
    long = engine.add(ask(list(range(3, 43))))
    tokens: dict[int, list[int]] = {first: [], long: []}
    seen = []
    while engine.has_work:
        updates = engine.step()
        seen.append({update.id for update in updates})
        for update in updates:
            tokens[update.id] += update.token_ids
    assert seen.index({first, long}) >= 7
    assert all(first in ids for ids in seen[:19])
    assert tokens[first] == naive(model, [5, 9, 11], 20).tokens[1:]
    assert tokens[long] == naive(model, list(range(3, 43)), 12).tokens


def test_logprobs_are_the_models_own_at_the_temperature(model):
    requests = [ask(p, temperature=0.7, top_p=0.8, top_k=50, presence_penalty=1.0, max_new_tokens=9) for p in PROMPTS]
    for prompt, (completion,) in zip(PROMPTS, complete(Engine(model, None, small()), requests), strict=True):
        tokens = torch.tensor([prompt + completion.tokens])
        with torch.no_grad():
            logprobs = torch.log_softmax(model(tokens).logits[0] / 0.7, -1)
        expected = logprobs[len(prompt) - 1 : -1].gather(1, tokens[0, len(prompt) :].unsqueeze(1)).squeeze(1)
        assert completion.logprobs == pytest.approx(expected.tolist(), abs=1e-4)


def test_top_logprobs(model):
    engine = Engine(model, None, small())
    engine.add(ask([5, 9], temperature=1.0, logprobs=3, max_new_tokens=4))
    engine.add(ask([5, 9], logprobs=0, max_new_tokens=4))
    engine.add(ask([5, 9], max_new_tokens=4))
    (one, none, plain) = engine.step()
    with torch.no_grad():
        best = torch.log_softmax(model(torch.tensor([[5, 9]])).logits[0, -1], -1).topk(3)
    assert [token for token, _ in one.top_logprobs[0]] == best.indices.tolist()
    assert [logprob for _, logprob in one.top_logprobs[0]] == pytest.approx(best.values.tolist(), abs=1e-4)
    assert ([list(top) for top in none.top_logprobs], plain.top_logprobs) == ([[]], None)


def test_updates_add_up_to_the_whole(model):
    request = ask(PROMPTS[2], samples=3, temperature=1.0)
    found: dict[int, list[int]] = {0: [], 1: [], 2: []}
    engine = Engine(model, None, small())
    engine.add(request)
    reasons = []
    while engine.has_work:
        for update in engine.step():
            assert len(update.token_ids) == 1
            found[update.sample] += update.token_ids
            reasons.append(update.finish_reason)
    whole = complete(Engine(model, None, small()), [request])[0]
    assert [found[sample] for sample in range(3)] == [completion.tokens for completion in whole]
    assert len({tuple(tokens) for tokens in found.values()}) == 3  # samples differ
    assert reasons.count("length") == 3
    assert engine.stats().blocks_used == 0


def test_the_samples_of_a_prompt_share_it(model):
    """It is read once, and only the block with its last token is each sample's own."""
    engine = Engine(model, None, small(max_rows=8))
    prompt = list(range(3, 21))
    engine.add(ask(prompt, samples=8, temperature=1.0))
    updates = engine.step()
    assert sorted(update.sample for update in updates) == list(range(8))
    assert engine.stats().blocks_used == 4 + 8
    assert engine.stats().miss_tokens == len(prompt)
    alone = [
        complete(Engine(model, None, small()), [ask(prompt, samples=s + 1, temperature=1.0)])[0][s] for s in (0, 5)
    ]
    rest = {update.sample: list(update.token_ids) for update in updates}
    while engine.has_work:
        for update in engine.step():
            rest[update.sample] += update.token_ids
    assert [rest[0], rest[5]] == [completion.tokens for completion in alone]


def test_a_following_turn_hits_the_cache(model):
    engine = Engine(model, None, small())
    first = complete(engine, [ask(list(range(3, 13)), max_new_tokens=8)])[0][0]
    turn = [*range(3, 13), *first.tokens, 40, 41]
    engine.add(ask(turn, max_new_tokens=4))
    (update,) = engine.step()
    assert update.cached_tokens == 16  # of 17 with entries: those of whole blocks
    assert engine.stats().hit_tokens == 16
    assert update.token_ids == naive(model, turn, 1).tokens
    off = Engine(model, None, small(prefix_cache=False))
    for _ in range(2):
        complete(off, [ask(turn, max_new_tokens=4)])
    assert (off.stats().hit_tokens, off.stats().blocks_cached) == (0, 0)


def test_new_weights_are_used_at_once(tokenizer):
    model = make_model(tokenizer.vocab_size)
    engine = Engine(model, None, small())
    before = complete(engine, [ask(PROMPTS[2])])[0][0]
    name = engine.fingerprint
    running = engine.add(ask(PROMPTS[2]))
    engine.step()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9)
    engine.weights_changed()
    assert engine.fingerprint != name
    assert engine.stats().blocks_cached == engine.stats().blocks_used == 0
    tokens = [
        token for _ in range(40) for update in engine.step() if update.id == running for token in update.token_ids
    ]
    assert tokens == naive(model, [*PROMPTS[2], before.tokens[0]], 11).tokens
    after = complete(engine, [ask(PROMPTS[2])])[0][0]
    assert_same(after, naive(model, PROMPTS[2], 12))
    assert after.logprobs != pytest.approx(before.logprobs, abs=1e-3)


def test_bf16_follows_autocast(model):
    with torch.autocast("cpu", torch.bfloat16):
        engine = Engine(model, None, small())
        found = complete(engine, [ask(prompt) for prompt in PROMPTS])
    assert engine.stepper.memory.data.dtype == torch.bfloat16
    for prompt, (completion,) in zip(PROMPTS, found, strict=True):
        assert completion.logprobs[0] == pytest.approx(naive(model, prompt, 1).logprobs[0], abs=0.2)


def test_a_network_that_breaks_leaves_no_trace(tokenizer):
    model = make_model(tokenizer.vocab_size, tie_word_embeddings=False)
    with torch.no_grad():
        model.model.embed_tokens.weight[50] = float("nan")
    engine = Engine(model, None, small(max_batch_tokens=16))
    engine.add(ask([5, 50] * 20, samples=2))
    while engine.has_work:
        for update in engine.step():
            assert (update.finish_reason, update.error) == ("error", "the network gave no finite numbers")
    assert engine.stats().blocks_used == engine.stats().blocks_cached == 0
    assert engine.stepper.memory.data.isfinite().all()
    assert complete(engine, [ask([5, 9])])[0][0].tokens == naive(model, [5, 9], 12).tokens
    with pytest.raises(RuntimeError, match="prompt 0: the network gave no finite"):
        complete(engine, [ask([50]), ask([5])])
    assert not engine.has_work


def test_cancelling_frees_at_once_and_says_so(model):
    engine = Engine(model, None, small())
    kept = engine.add(ask([5, 9]))
    gone = engine.add(ask(PROMPTS[2], samples=3))
    waiting = engine.add(ask([7]))
    engine.step()
    used = engine.stats().blocks_used
    engine.cancel(gone)
    engine.cancel(waiting)
    engine.cancel(waiting)
    engine.cancel(99)
    assert engine.stats().blocks_used < used
    updates = engine.step()
    cancelled = [(update.id, update.sample) for update in updates if update.finish_reason == "cancelled"]
    assert cancelled == [(gone, 0), (gone, 1), (gone, 2), (waiting, 0)]
    tokens = [token for update in updates if update.id == kept for token in update.token_ids]
    while engine.has_work:
        tokens += [token for update in engine.step() for token in update.token_ids]
    assert tokens == naive(model, [5, 9], 12).tokens[1:]


def test_refusals(model, tokenizer):
    engine = Engine(model, None, small())
    for request, message in [
        (ask([]), "the prompt has 0 tokens"),
        (ask([5] * 53), r"53 tokens and may grow by 12; .* at most 64 \(max_position"),
        (ask([5, tokenizer.vocab_size]), "the prompt holds a token id outside 0…"),
        (ask([5], logit_bias={9999: 1.0}), "logit_bias holds a token id outside"),
        (ask([5], stop_token_ids=(-1,)), "stop_token_ids holds"),
        (ask([5], stop=("x",)), "need a tokenizer; give the engine one"),
        (ask([5], samples=0), "samples is 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            engine.add(request)
    with pytest.raises(ValueError, match="prompt 1: the prompt has 0 tokens"):
        complete(engine, [ask([5]), ask([])])
    assert not engine.has_work
    assert len(complete(engine, [ask([5] * 52)])[0][0].tokens) == 12  # the very last place
    with pytest.raises(ValueError, match=r"the cache holds 16; lower max_new_tokens or give"):
        Engine(model, None, small(blocks=4)).add(ask([5] * 5))
    assert complete(engine, []) == []


@pytest.mark.parametrize("length", range(2, 11))
def test_a_sample_starts_when_a_row_is_free_however_the_prompt_was_cut(model, length):
    """Also where the prompt's last token was read alone, as an answer's are."""
    engine = Engine(model, None, small(max_rows=2, max_batch_tokens=4))
    engine.add(ask([9], max_new_tokens=12))
    engine.step()
    engine.add(ask(list(range(20, 20 + length)), samples=2, max_new_tokens=40))
    for _ in range(14):
        engine.step()
    assert (engine.stats().running, engine.stats().waiting) == (2, 0)
