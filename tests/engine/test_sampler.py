import pytest
import torch

from ziphius.engine.sampler import Completion, draw, sample
from ziphius.engine.settings import SamplingSettings

from .conftest import make_model

PROMPTS = [[5, 9, 11], [7], [3, 4, 5, 6, 8, 9, 10, 12], [20, 21], [33, 3, 99, 4, 17]]
GREEDY = SamplingSettings(temperature=0.0, max_new_tokens=12)
NEVER = -1


def g(seed=0):
    return torch.Generator().manual_seed(seed)


def naive(model, prompt, settings, stop_id):
    """Greedy decoding by whole forward passes, without a cache."""
    found = Completion()
    tokens = list(prompt)
    with torch.no_grad():
        while len(found.tokens) < settings.max_new_tokens and not found.finished:
            logprobs = torch.log_softmax(model(torch.tensor([tokens])).logits[0, -1], -1)
            token = int(logprobs.argmax())
            tokens.append(token)
            found.tokens.append(token)
            found.logprobs.append(float(logprobs[token]))
            found.finished = token == stop_id
    return found


def assert_same(one, two, tolerance=1e-4):
    assert one.tokens == two.tokens
    assert one.finished == two.finished
    assert one.logprobs == pytest.approx(two.logprobs, abs=tolerance)


@pytest.mark.parametrize(
    "overrides", [{}, {"q_lora_rank": 16, "tie_word_embeddings": True}, {"n_routed_experts": None}]
)
def test_greedy_decoding_equals_whole_forward_passes(tokenizer, overrides):
    model = make_model(tokenizer.vocab_size, **overrides)
    stop = naive(model, PROMPTS[2], GREEDY, NEVER).tokens[4]  # so that some answers end early
    found = sample(model, PROMPTS, GREEDY, g(), stop_id=stop)
    expected = [naive(model, prompt, GREEDY, stop) for prompt in PROMPTS]
    for (one,), two in zip(found, expected, strict=True):
        assert_same(one, two)
    assert expected[2].finished
    assert found[2][0].tokens[-1] == stop


@pytest.mark.parametrize("samples", [1, 3])
def test_dropping_finished_rows_changes_nothing(model, samples):
    all_tokens = [naive(model, prompt, GREEDY, NEVER).tokens for prompt in PROMPTS]
    stop = all_tokens[0][3]
    expected = [naive(model, prompt, GREEDY, stop) for prompt in PROMPTS]
    for found, two in zip(sample(model, PROMPTS, GREEDY, g(), stop_id=stop, samples=samples), expected, strict=True):
        assert len(found) == samples
        for one in found:
            assert_same(one, two)
    lengths = {len(completion.tokens) for completion in expected}
    assert len(lengths) > 1


def test_logprobs_are_the_models_own_at_the_temperature(model):
    settings = SamplingSettings(temperature=0.7, top_p=0.8, max_new_tokens=9)
    for prompt, (completion,) in zip(PROMPTS, sample(model, PROMPTS, settings, g(), stop_id=NEVER), strict=True):
        tokens = torch.tensor([prompt + completion.tokens])
        with torch.no_grad():
            logprobs = torch.log_softmax(model(tokens).logits[0] / 0.7, -1)
        expected = logprobs[len(prompt) - 1 : -1].gather(1, tokens[0, len(prompt) :].unsqueeze(1)).squeeze(1)
        assert completion.logprobs == pytest.approx(expected.tolist(), abs=1e-4)


def test_samples_stand_with_their_prompt(model):
    """Each sample continues its own prompt, in the prompts' order, however the rows are cut in batches."""
    settings = SamplingSettings(temperature=1.0, max_new_tokens=3)
    for max_rows in (256, 6, 1):
        found = sample(model, PROMPTS, settings, g(), stop_id=NEVER, samples=3, max_rows=max_rows)
        assert [len(completions) for completions in found] == [3] * len(PROMPTS)
        for prompt, completions in zip(PROMPTS, found, strict=True):
            for completion in completions:
                tokens = torch.tensor([prompt + completion.tokens])
                with torch.no_grad():
                    logprobs = torch.log_softmax(model(tokens).logits[0], -1)
                assert completion.logprobs[0] == pytest.approx(
                    float(logprobs[len(prompt) - 1, completion.tokens[0]]), abs=1e-4
                )
    assert len({tuple(completion.tokens) for completion in found[0]}) > 1  # samples differ


def test_stop_and_length(model):
    for limit in (1, 5):
        settings = SamplingSettings(temperature=0.0, max_new_tokens=limit)
        (completion,) = sample(model, [[5, 9]], settings, g(), stop_id=NEVER)[0]
        assert len(completion.tokens) == len(completion.logprobs) == limit
        assert not completion.finished
    first = sample(model, [[5, 9]], GREEDY, g(), stop_id=NEVER)[0][0].tokens[0]
    (completion,) = sample(model, [[5, 9]], GREEDY, g(), stop_id=first)[0]
    assert completion.tokens == [first]
    assert completion.finished


def test_a_stop_on_the_last_step_counts(model):
    tokens = sample(model, [[5, 9]], GREEDY, g(), stop_id=NEVER)[0][0].tokens
    place = next(i for i, token in enumerate(tokens) if i and token not in tokens[:i])
    settings = SamplingSettings(temperature=0.0, max_new_tokens=place + 1)
    (completion,) = sample(model, [[5, 9]], settings, g(), stop_id=tokens[place])[0]
    assert completion.tokens == tokens[: place + 1]
    assert completion.finished


def test_same_seed_same_tokens(model):
    settings = SamplingSettings(temperature=1.5, max_new_tokens=8)
    run = lambda seed: [c.tokens for (c,) in sample(model, PROMPTS, settings, g(seed), stop_id=1)]
    assert run(3) == run(3) != run(4)


def test_bf16_follows_autocast(model):
    with torch.autocast("cpu", torch.bfloat16):
        found = sample(model, PROMPTS, GREEDY, g(), stop_id=NEVER)
    for prompt, (completion,) in zip(PROMPTS, found, strict=True):
        expected = naive(model, prompt, GREEDY, NEVER)
        assert completion.logprobs[0] == pytest.approx(expected.logprobs[0], abs=0.2)


def test_refusals(model):
    for prompts, message in [([[5], []], "prompt 1 has 0 tokens"), ([[5] * 53], "prompt 0 has 53 tokens and may grow")]:
        with pytest.raises(ValueError, match=message):
            sample(model, prompts, GREEDY, g(), stop_id=NEVER)
    assert len(sample(model, [[5] * 52], GREEDY, g(), stop_id=NEVER)[0][0].tokens) == 12  # the very last place
    assert sample(model, [], GREEDY, g(), stop_id=NEVER) == []


# --- one draw --------------------------------------------------------------------------------------------------------


def shares(settings, logits, n=40_000):
    chosen, logprobs = draw(logits.expand(n, -1), settings, g())
    return torch.bincount(chosen, minlength=len(logits)) / n, chosen, logprobs


def test_draws_have_the_distributions_shares():
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0])
    for temperature in (0.5, 1.0, 2.0):
        found, chosen, logprobs = shares(SamplingSettings(temperature=temperature), logits)
        p = torch.softmax(logits / temperature, -1)
        assert torch.allclose(found, p, atol=0.012)
        assert torch.allclose(logprobs, p.log()[chosen])


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.4, 1), (0.49, 1), (0.51, 2), (0.75, 2), (0.79, 3), (0.9, 3), (0.96, 4), (1.0, 4)]
)
def test_top_p_keeps_the_fewest_tokens_that_reach_it(top_p, kept):
    """Probabilities 0.5, 0.28, 0.17, 0.05, out of order."""
    p = torch.tensor([0.17, 0.5, 0.05, 0.28])
    order = [1, 3, 0, 2]
    found, chosen, logprobs = shares(SamplingSettings(temperature=1.0, top_p=top_p), p.log())
    alive = order[:kept]
    expected = torch.zeros(4)
    expected[alive] = p[alive] / p[alive].sum()
    assert torch.allclose(found, expected, atol=0.012)
    assert found[order[kept:]].sum() == 0
    assert torch.allclose(logprobs, p.log()[chosen])  # of the whole distribution


def test_temperature_nought_is_the_likeliest_at_its_own_probability():
    logits = torch.tensor([[1.0, 3.0, 2.0], [0.0, -1.0, -2.0]])
    chosen, logprobs = draw(logits, SamplingSettings(temperature=0.0), g())
    assert chosen.tolist() == [1, 0]
    assert torch.allclose(logprobs, torch.log_softmax(logits, -1)[[0, 1], [1, 0]])
