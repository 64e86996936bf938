import subprocess
import sys

import pytest

import ziphius
from ziphius.engine.complete import complete
from ziphius.engine.engine import Engine

from .conftest import ask, make_model, small


def test_questions_become_texts(model, tokenizer):
    texts = ziphius.generate(model, ["whale?", "1 + 2"], tokenizer, max_new_tokens=10, temperature=1.0, seed=4)
    prompts = [tokenizer.prompt_ids(text) for text in ("whale?", "1 + 2")]
    requests = [
        ask(prompt, temperature=1.0, max_new_tokens=10, seed=4 + place, ignore_eos=False)
        for place, prompt in enumerate(prompts)
    ]
    found = [c for (c,) in complete(Engine(model, tokenizer, small()), requests)]
    assert texts == [tokenizer.decode(c.tokens[:-1] if c.finished else c.tokens) for c in found]
    again = ziphius.generate(model, ["whale?", "1 + 2"], tokenizer, max_new_tokens=10, temperature=1.0, seed=4)
    assert texts == again
    other = ziphius.generate(model, ["whale?"], tokenizer, max_new_tokens=10, temperature=0.0, thinking=False)
    assert other != ziphius.generate(model, ["whale?"], tokenizer, max_new_tokens=10, temperature=0.0)


def test_ids_become_completions(model, tokenizer):
    for given in (None, tokenizer):
        (one, two) = ziphius.generate(model, [[5, 6], [7]], given, max_new_tokens=4, temperature=0.0)
        assert (one, two) == tuple(
            c for (c,) in complete(Engine(model, None, small()), [ask(p, max_new_tokens=4) for p in ([5, 6], [7])])
        )
    endless = make_model(tokenizer.vocab_size, eos_token_id=None)
    assert len(ziphius.generate(endless, [[5]], max_new_tokens=4)[0].tokens) == 4
    assert ziphius.generate(model, []) == []


def test_wrong_prompts_are_refused(model, tokenizer):
    for prompts, given, message in [
        ("whale?", tokenizer, "one string; give a list"),
        (["whale?"], None, r"no tokenizer; give one \(ziphius\.Tokenizer\.load"),
        (["whale?", [5]], tokenizer, "not both"),
        ([[]], tokenizer, "prompt 0: the prompt has 0 tokens"),
    ]:
        with pytest.raises(ValueError, match=message):
            ziphius.generate(model, prompts, given, max_new_tokens=4)


def test_folders_round_trip(model, tokenizer, tmp_path):
    ziphius.save_model(model, tmp_path)
    tokenizer.save(tmp_path)
    loaded, its = ziphius.load_model(tmp_path), ziphius.Tokenizer.load(tmp_path)
    ask = lambda m, t: ziphius.generate(m, ["whale?"], t, max_new_tokens=8, temperature=0.0)
    assert ask(loaded, its) == ask(model, tokenizer)
    assert ziphius.load_config(tmp_path).hidden_size == 32


def test_import_is_light_and_names_are_there():
    code = (
        "import sys, ziphius; heavy = {'torch', 'transformers', 'numpy', 'pydantic', 'tokenizers'} & set(sys.modules); "
        "assert not heavy, heavy; assert ziphius.load_model.__name__ == 'load_model'; assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert set(ziphius.__all__) == set(dir(ziphius))
    assert all(getattr(ziphius, name).__name__ == name for name in ziphius.__all__)
    with pytest.raises(AttributeError, match="no attribute 'dive'; it has Tokenizer, generate"):
        _ = ziphius.dive
