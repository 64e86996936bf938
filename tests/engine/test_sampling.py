"""Settings of a request, seen through what comes out of the engine."""

import math
from collections import Counter
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from ziphius.engine.complete import complete
from ziphius.engine.engine import Engine
from ziphius.engine.settings import Constraint, EngineSettings, SamplingSettings
from ziphius.engine.shaping import penalised
from ziphius.text.tokenizer import Tokenizer

from .conftest import PROMPTS, ask, naive, small


def run(model, *requests, tokenizer=None, **settings):
    return [[c.tokens for c in row] for row in complete(Engine(model, tokenizer, small(**settings)), requests)]


def logits_of(model, tokens):
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0, -1]


def test_same_seed_same_tokens_in_any_company(model):
    requests = [ask(p, temperature=1.5, seed=3, samples=2) for p in PROMPTS]
    together = run(model, *requests)
    assert together == [run(model, request)[0] for request in requests]
    assert together == run(model, *reversed(requests), max_rows=3)[::-1]
    assert together != run(model, *(ask(p, temperature=1.5, seed=4, samples=2) for p in PROMPTS))
    unseeded = ask(PROMPTS[0], temperature=1.5, seed=None)
    assert run(model, unseeded) != run(model, unseeded)


def test_draws_follow_the_networks_distribution(model):
    """χ² of the first two tokens over many samples, with temperature and cuts."""
    prompt, n = [5, 9, 11], 4000
    for settings in ({"temperature": 1.0, "top_k": 8}, {"temperature": 0.6, "top_p": 0.8}):
        found = run(model, ask(prompt, samples=n, max_new_tokens=2, **settings), max_rows=500, max_batch_tokens=500)[0]
        p = torch.softmax(logits_of(model, prompt) / settings["temperature"], -1).sort(descending=True)
        kept = 8 if "top_k" in settings else int((p.values.cumsum(0) < 0.8).sum()) + 1
        expected = dict(zip(p.indices[:kept].tolist(), (p.values[:kept] / p.values[:kept].sum()).tolist(), strict=True))
        counts = Counter(tokens[0] for tokens in found)
        assert set(counts) <= set(expected)
        chi2 = sum((counts[token] - n * share) ** 2 / (n * share) for token, share in expected.items())
        assert chi2 < kept + 5 * math.sqrt(2 * kept)


def test_greedy_and_sampled_rows_side_by_side(model):
    mixed = run(model, *(ask(p, temperature=t) for p, t in zip(PROMPTS, (0, 1, 0, 1, 0), strict=True)))
    for place in (0, 2, 4):
        assert mixed[place][0] == naive(model, PROMPTS[place], 12).tokens
    assert mixed[1][0] == run(model, ask(PROMPTS[1], temperature=1.0))[0][0]


@pytest.mark.parametrize("temperature", [0.002, 1e-30])
@pytest.mark.parametrize("given", [{"thinking_budget": 2}, {"constraint": Constraint(kind="regex", text="[a-z]{20}")}])
def test_a_token_that_must_come_may_be_unlikely_beyond_measure(model, tokenizer, temperature, given):
    """At a low temperature its share is zero in every float."""
    thinking = "thinking_budget" in given
    request = ask([5, 9], temperature=temperature, thinking=thinking, top_p=0.9, logprobs=2, **given)
    (found,) = complete(Engine(model, tokenizer, small()), [request])[0]
    assert len(found.tokens) == 12
    assert temperature < 1e-5 or min(found.logprobs) < -50
    assert all(math.isfinite(logprob) for logprob in found.logprobs)


def test_stop_tokens_and_length(model):
    tokens = naive(model, [5, 9], 12).tokens
    place = next(i for i, token in enumerate(tokens) if i > 1 and token not in tokens[:i])
    for limit in (place + 1, 12):  # also on the very last step
        (found,) = complete(
            Engine(model, None, small()), [ask([5, 9], stop_token_ids=(tokens[place],), max_new_tokens=limit)]
        )[0]
        assert (found.tokens, found.finished) == (tokens[: place + 1], True)
    (found,) = complete(Engine(model, None, small()), [ask([5, 9], max_new_tokens=5)])[0]
    assert (found.tokens, found.finished) == (tokens[:5], False)


def test_the_end_token_ends_unless_it_is_ignored(model, tokenizer):
    requests = [ask([5, 9], logit_bias={tokenizer.eos_id: 99.0}, ignore_eos=ignore) for ignore in (False, True)]
    for given in (tokenizer, None):  # the tokenizer's, or config.json's
        ended, ignored = complete(Engine(model, given, small()), requests)
        assert (ended[0].tokens, ended[0].finished) == ([tokenizer.eos_id], True)
        assert (ignored[0].tokens, ignored[0].finished) == ([tokenizer.eos_id] * 12, False)


def test_min_tokens_hold_off_the_end(model, tokenizer):
    request = ask([5, 9], logit_bias={tokenizer.eos_id: 99.0}, min_tokens=7, ignore_eos=False)
    (tokens,) = run(model, request, tokenizer=tokenizer)[0]
    assert tokens == [*naive(model, [5, 9], 7).tokens, tokenizer.eos_id]


def test_stop_strings(model, tokenizer):
    tokens = naive(model, [5, 9], 12).tokens
    text = tokenizer.decode(tokens)
    stop = next(text[i : i + 3] for i in range(4, len(text) - 3) if "�" not in text[i : i + 3])
    engine = Engine(model, tokenizer, small())
    engine.add(ask([5, 9], stop=("nowhere", stop)))
    updates = []
    while engine.has_work:
        updates += engine.step()
    assert (updates[-1].finish_reason, updates[-1].stop_string) == ("stop", stop)
    found = [token for update in updates for token in update.token_ids]
    assert stop in tokenizer.decode(found)
    assert stop not in tokenizer.decode(found[:-1])
    assert found == tokens[: len(found)]


def test_stop_strings_are_not_looked_for_in_the_thinking(model, tokenizer):
    letter, close = tokenizer.encode("x")[0], tokenizer.end_think_id
    script = [letter, close, letter]
    for thinking, expected in [(True, script), (False, [letter])]:
        engine = Engine(model, tokenizer, small())
        engine.add(ask([5], stop=("x",), thinking=thinking))
        (sequence,) = engine.scheduler.waiting
        found = []
        for token in script:
            found.append(token)
            if not sequence.append(token, 0.0):
                break
        assert found == expected
        assert sequence.stop_string == "x"


def say(model, tokenizer, text, **settings):
    """Whether and where an answer that goes like this ends: its stop string and how many tokens there were."""
    engine = Engine(model, tokenizer, small())
    engine.add(ask([5], max_new_tokens=50, **settings))
    (sequence,) = engine.scheduler.waiting
    for token in tokenizer.encode(text):
        if not sequence.append(token, 0.0):
            break
    return sequence.stop_string, tokenizer.decode(sequence.tokens[1:])


def test_whitespace_between_thinking_and_answer_ends_nothing(model, tokenizer):
    stop = {"stop": ("\n\n",)}
    assert say(model, tokenizer, "a</think>\n\nb\n\nc", thinking=True, **stop) == ("\n\n", "a</think>\n\nb\n\n")
    assert say(model, tokenizer, "\n\nb", thinking=False, **stop) == ("\n\n", "\n\n")


def test_a_stop_string_before_min_tokens_does_not_count_later(model, tokenizer):
    assert say(model, tokenizer, "a#bcde#f", stop=("#",), min_tokens=4) == ("#", "a#bcde#")


def test_stop_strings_need_no_thinking_tokens(model, tokenizer, monkeypatch):
    plain = Tokenizer(tokenizer.inner)
    find = tokenizer.inner.token_to_id
    monkeypatch.setattr(plain, "inner", Mock(wraps=tokenizer.inner))
    plain.inner.token_to_id = lambda token: None if "think" in token else find(token)
    assert say(model, plain, "ab#", stop=("#",)) == ("#", "ab#")


def test_penalties_against_a_plain_loop():
    generator = np.random.default_rng(0)
    penalties = [(0.5, 0.0, 1.0), (0.0, 0.7, 1.0), (0.0, 0.0, 1.3), (1.0, -0.5, 0.8)]
    logits, count = generator.normal(size=(4, 30)), generator.integers(0, 3, (4, 30))
    prompt = generator.random((4, 30)) < 0.3
    expected = [
        [
            ((logit / repetition if logit > 0 else logit * repetition) if times or there else logit)
            - frequency * times
            - (presence if times else 0)
            for logit, times, there in zip(*row, strict=True)
        ]
        for (presence, frequency, repetition), *row in zip(penalties, logits, count, prompt, strict=True)
    ]
    found = penalised(*map(torch.from_numpy, (logits, count, prompt)), *torch.tensor(penalties).T)
    assert found.numpy() == pytest.approx(np.array(expected), abs=1e-5)


@pytest.mark.parametrize("extra", [{}, {"speculation": 2}, {"max_rows": 1}])
def test_penalties_count_the_answer_and_the_prompt(model, extra):
    """Greedy decoding with penalties, token by token, also when other requests use the rows in between."""
    request = ask(PROMPTS[2], presence_penalty=0.9, frequency_penalty=0.4, repetition_penalty=1.2, logit_bias={7: 1.5})
    tokens = list(PROMPTS[2])
    penalties = torch.tensor([[0.9], [0.4], [1.2]])
    for _ in range(12):
        row = logits_of(model, tokens)
        row[7] += 1.5
        answer = torch.tensor(tokens[len(PROMPTS[2]) :], dtype=torch.long).bincount(minlength=len(row))
        prompt = torch.isin(torch.arange(len(row)), torch.tensor(PROMPTS[2]))
        row = penalised(row.unsqueeze(0), answer.unsqueeze(0), prompt.unsqueeze(0), *penalties)
        tokens.append(int(row.argmax()))
    expected = tokens[len(PROMPTS[2]) :]
    assert expected != naive(model, PROMPTS[2], 12).tokens
    found = run(model, request, ask([5]), request, ask([7]), request, **extra)
    assert [found[place][0] for place in (0, 2, 4)] == [expected] * 3
    assert found[1][0] == naive(model, [5], 12).tokens


def test_batch_invariance_is_exact(model):
    """The very same log-probabilities, whatever the batch, the chunks and the cache."""
    requests = [ask(p, temperature=1.0, max_new_tokens=6) for p in PROMPTS]
    alone = [complete(Engine(model, None, small(batch_invariant=True)), [r])[0][0] for r in requests]
    engine = Engine(model, None, small(batch_invariant=True, blocks=12, max_rows=3, max_batch_tokens=5))
    for _ in range(2):  # the second time from the cache
        assert [row[0] for row in complete(engine, requests)] == alone
    assert engine.stats().hit_tokens > 0


def test_settings_refuse_what_cannot_be():
    for model, given, message in [
        (SamplingSettings, {"stop": ("",)}, "empty string"),
        (SamplingSettings, {"min_tokens": 9, "max_new_tokens": 8}, "min_tokens"),
        (SamplingSettings, {"thinking_budget": 255}, "leaves no room for an answer"),
        (SamplingSettings, {"heat": 1}, "heat"),
        (SamplingSettings, {"temperature": float("nan")}, "temperature"),
        (Constraint, {"kind": "regex"}, "needs a text"),
        (Constraint, {"kind": "json", "text": "{}"}, "takes no text"),
        (EngineSettings, {"memory_gib": 1, "blocks": 5}, "not both"),
        (EngineSettings, {"speculation": 0}, "1 to 16"),
        (EngineSettings, {"max_rows": 2000, "speculation": 2}, "raise it or lower max_rows"),
    ]:
        with pytest.raises(ValueError, match=message):
            model(**given)


def test_the_pool_is_sized_by_memory(model):
    blocks = Engine(model, None, EngineSettings(memory_gib=1 / 1024)).stats().blocks_total
    config = model.config
    layers = config.num_hidden_layers + config.num_nextn_predict_layers
    assert blocks == 2**20 // (layers * 16 * (config.kv_lora_rank + config.qk_rope_head_dim) * 4)
    assert Engine(model, None, EngineSettings(max_rows=3)).stats().blocks_total == 3 * 64 // 16
    with pytest.raises(ValueError, match=r"the cache would take 99,999\.00 GiB and .* are free; lower memory_gib"):
        Engine(model, None, EngineSettings(memory_gib=99999))
    with pytest.raises(ValueError, match="holds no block of 16 tokens, which takes"):
        Engine(model, None, EngineSettings(memory_gib=1e-6))


def test_an_answer_ends_with_any_of_the_folders_ends(model, tokenizer, monkeypatch):
    monkeypatch.setitem(tokenizer.__dict__, "eos_ids", [tokenizer.eos_id, 7])
    engine = Engine(model, tokenizer, small())
    given = {"logit_bias": {7: 100.0}, "max_new_tokens": 4}
    ended, went_on = complete(engine, [ask([5], ignore_eos=ignored, **given) for ignored in (False, True)])
    assert [(c.tokens, c.finished) for c in ended] == [([7], True)]
    assert [(c.tokens, c.finished) for c in went_on] == [([7] * 4, False)]
