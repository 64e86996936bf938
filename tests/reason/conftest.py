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


@pytest.fixture
def model(tokenizer) -> Transformer:
    shape: dict = {"hidden_size": 32, "n_routed_experts": 4, "initializer_range": 0.1, "max_position_embeddings": 128}
    made = Transformer(ladder(2, tokenizer.vocab_size, **shape))
    made.init_weights(torch.Generator().manual_seed(0))
    return made
