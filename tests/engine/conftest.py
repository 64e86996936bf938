import pytest
import torch

from ziphius.model.presets import ladder
from ziphius.model.transformer import Transformer
from ziphius.text.tokenizer import Tokenizer, train_tokenizer


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
