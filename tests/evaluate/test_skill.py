import torch

from ziphius.engine.generate import generate
from ziphius.evaluate import skill
from ziphius.evaluate.skill import worked_solution_accuracy
from ziphius.model.presets import ladder
from ziphius.model.transformer import Transformer
from ziphius.train.place import Place


def test_it_equals_greedy_decoding(monkeypatch):
    """Samples of the model's own greedy words, of which some are spoilt in one weighted token."""
    torch.set_num_threads(1)
    monkeypatch.setattr(skill, "_ROWS", 4)
    model = Transformer(ladder(2, 50, hidden_size=32, initializer_range=0.3, eos_token_id=None))
    model.init_weights(torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(3, 50, (3 + i % 4,), generator=generator).tolist() for i in range(11)]
    words = [c.tokens for c in generate(model, prompts, temperature=0.0, max_new_tokens=5)]
    samples = [(p + w, [0.0] * len(p) + [1.0] * 5) for p, w in zip(prompts, words, strict=True)]
    assert worked_solution_accuracy(model, samples, pad_id=2) == 1.0
    for spoilt in (2, 5, 9):
        tokens, weights = samples[spoilt]
        place = len(tokens) - 1 - spoilt % 5
        samples[spoilt] = ([*tokens[:place], (tokens[place] + 1) % 50, *tokens[place + 1 :]], weights)
    assert worked_solution_accuracy(model, samples, pad_id=2) == 8 / 11
    tokens, weights = samples[2]
    samples[2] = (tokens, [0.0] * len(tokens))  # what weighs nothing cannot be wrong
    assert worked_solution_accuracy(model, samples, pad_id=2) == 9 / 11
    assert worked_solution_accuracy(model, samples, pad_id=2, place=Place()) == 9 / 11
    assert worked_solution_accuracy(model, [], pad_id=2) == 0.0
