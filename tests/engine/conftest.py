import pytest
import torch

from ziphius.engine.complete import Completion
from ziphius.engine.request import Request
from ziphius.engine.settings import EngineSettings, SamplingSettings
from ziphius.model.presets import ladder
from ziphius.model.transformer import Transformer
from ziphius.text.learn import train_tokenizer
from ziphius.text.tokenizer import Tokenizer

PROMPTS = [[5, 9, 11], [7], [3, 4, 5, 6, 8, 9, 10, 12], [20, 21], [33, 3, 99, 4, 17]]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["a whale dives deep", "1 + 2 = 3", "many whales dive"], 300)


@pytest.fixture(scope="session")
def model(tokenizer) -> Transformer:
    """Random weights large enough that no two tokens are nearly as likely."""
    return make_model(tokenizer.vocab_size)


def make_model(vocab_size: int, **overrides: object) -> Transformer:
    shape: dict = {"hidden_size": 32, "initializer_range": 0.3, "max_position_embeddings": 64} | overrides
    model = Transformer(ladder(2, vocab_size, **shape))
    model.init_weights(torch.Generator().manual_seed(0))
    return model


def small(**overrides: object) -> EngineSettings:
    """An engine of small blocks, so that short sequences have several."""
    return EngineSettings(
        **{"blocks": 128, "block_size": 4, "max_rows": 16, "max_batch_tokens": 64, "speculation": "off"} | overrides
    )


def ask(
    prompt: list[int], *, samples: int = 1, priority: int = 0, thinking: bool | None = False, **settings: object
) -> Request:
    """A greedy request, unless the settings say otherwise, that ends with its length alone."""
    given = {"temperature": 0.0, "max_new_tokens": 12, "ignore_eos": True, "seed": 0} | settings
    return Request(prompt, SamplingSettings(**given), priority=priority, samples=samples, thinking=thinking)


def naive(model: Transformer, prompt: list[int], new: int, stop: int = -1) -> Completion:
    """Greedy decoding by whole forward passes, without a cache."""
    found = Completion()
    tokens = list(prompt)
    with torch.no_grad():
        while len(found.tokens) < new and not found.finished:
            logprobs = torch.log_softmax(model(torch.tensor([tokens])).logits[0, -1], -1)
            token = int(logprobs.argmax())
            tokens.append(token)
            found.tokens.append(token)
            found.logprobs.append(float(logprobs[token]))
            found.finished = token == stop
    return found
