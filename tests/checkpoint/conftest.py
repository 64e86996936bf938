import pytest
import torch

from ziphius.model.config import ModelConfig
from ziphius.model.presets import ladder
from ziphius.model.transformer import Transformer


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def tiny():
    """A network of every kind of part, some 50,000 weights."""
    return make(ladder(2, vocab_size=64, n_routed_experts=4, num_hidden_layers=3))


@pytest.fixture
def build():
    """`build(config, seed)`: a network with random weights everywhere, norms and selection bias too."""
    return make


def make(config: ModelConfig, seed: int = 0) -> Transformer:
    generator = torch.Generator().manual_seed(seed)
    model = Transformer(config)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.normal_(0.5, 0.2, generator=generator)
    return model
