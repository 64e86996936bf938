from pathlib import Path

import pytest
import torch

from ziphius.model.presets import ladder
from ziphius.model.transformer import Transformer
from ziphius.text.learn import train_tokenizer
from ziphius.text.tokenizer import Tokenizer


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["a whale dives deep", "1 + 2 = 3", "many whales dive"], 300)


@pytest.fixture(scope="session")
def tokenizer_folder(tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(folder)
    return folder


@pytest.fixture
def build():
    """`build(seed, **overrides)`: a small network of every kind of part, 64 ids unless told."""
    return make_model


def make_model(seed: int = 0, vocab_size: int = 64, **overrides: object) -> Transformer:
    shape: dict = {"hidden_size": 32, "initializer_range": 0.1, "n_routed_experts": 4} | overrides
    model = Transformer(ladder(2, vocab_size, **shape))
    model.init_weights(torch.Generator().manual_seed(seed))
    return model
